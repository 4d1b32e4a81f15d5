"""A run in which nothing moves any more: said and ended, instead of waiting for ever.

Whatever shows progress feeds the watch: steps, parts of steps, units of progress, lines. Processes
of one run tell each other through torch's store, since most of them wait while one draws or
exports: the run hangs when none of them has moved. A process that computes speaks before those that
wait for it, and one that does not answer (it was stopped, its machine is gone) is named by the
others.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.reporting import Logged, Quiet
from dreambooth.engine.watching.failures import whole
from dreambooth.errors import RunError
from dreambooth.helpers.units import duration
from dreambooth.process import launcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType, TracebackType

    from dreambooth.engine.devices.processes import Devices
    from dreambooth.engine.reporting import Reporter
    from dreambooth.interfaces import Progress
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder

LOOKS = 20
"""How often the watch looks up within the time it allows, once a second at least."""
START = 300.0
"""Seconds that are allowed at least before the first step is done: libraries are imported, weights
read, and processes come one after the other, without a sign."""
GRACE = 3.0
"""Seconds by which a process that waits for others lets them speak first."""
PREFIX = "dreambooth/moved"


@dataclass
class _Seen:
    """What is known of one process: what it wrote last, and how long that has been so."""

    looks: str = ""
    count: str = ""
    doing: str = ""
    still: float = 0.0
    silent: float = 0.0


@contextmanager
def watching(
    job: Job, folder: RunFolder, leave: Callable[[RunError], None] | None
) -> Iterator[Watch]:
    """Watch a run within the block, for as long as `train.hang_timeout` allows (null: not at all).

    `leave` ends the process. Without it, from Python, the error is a warning, once.
    """
    limit = job.train.hang_timeout
    watch = Watch(limit or 0.0, folder, leave, launcher.rank())
    if limit is None:
        yield watch
        return
    with watch:
        yield watch


@dataclass
class Watch:
    """Counts the seconds in which nothing moves; time in which this process is stopped is none."""

    limit: float
    folder: RunFolder
    leave: Callable[[RunError], None] | None
    rank: int = 0
    _count: int = 0
    _doing: str = "the beginning"
    _begun: bool = False
    _store: Any = None
    _processes: dict[int, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._processes[self.rank] = _Seen()

    def __enter__(self) -> Watch:
        """Begin to count."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop counting."""
        self._over.set()
        self._thread.join()

    def moved(self, doing: str = "") -> None:
        """Take note that the run moved; `doing` says where it is."""
        self._count += 1
        self._doing = doing or self._doing

    def stepped(self, step: int) -> None:
        """Take note of a step: from the first one on the limit holds as it is."""
        self._begun = True
        self.moved(f"step {step}")

    def join(self, devices: Devices) -> None:
        """Let the processes of the run hear of each other."""
        self._doing = "setting up"
        if devices.world_size > 1:
            # A clone: the main thread may wait within a call of the store itself.
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self._processes |= {n: _Seen() for n in range(devices.world_size) if n != self.rank}
            self._store = store.clone()

    def _look_on(self) -> None:
        pause = min(1.0, self.limit / LOOKS)
        looks, before = 0, time.monotonic()
        while not self._over.wait(pause):
            now = time.monotonic()
            passed, before = min(now - before, 2 * pause), now
            looks += 1
            self._exchange(looks)
            for seen in self._processes.values():
                seen.still += passed
                seen.silent += passed
            self._take(self.rank, str(looks), str(self._count), self._doing)
            still = min(seen.still for seen in self._processes.values())
            limit = self.limit if self._begun else max(self.limit, START)
            if still >= limit + (GRACE if self._waits() else 0.0):
                self._end(still)
                return

    def _exchange(self, looks: int) -> None:
        """Tell the others how far this process is, and hear of them; best effort."""
        if self._store is None:
            return
        with suppress(RuntimeError):  # the store goes with the process that holds it
            self._store.set(f"{PREFIX}/{self.rank}", f"{looks}\n{self._count}\n{self._doing}")
            for other in self._processes:
                key = f"{PREFIX}/{other}"
                if other != self.rank and self._store.check([key]):
                    self._take(other, *self._store.get(key).decode().split("\n", 2))

    def _take(self, process: int, looks: str, count: str, doing: str) -> None:
        seen = self._processes[process]
        if seen.looks != looks:
            seen.looks, seen.silent = looks, 0.0
        if seen.count != count:
            seen.count, seen.doing, seen.still = count, doing, 0.0

    def _frames(self) -> list[FrameType]:
        """Return the frames of the thread that runs the job, innermost first."""
        frame, found = sys._current_frames().get(self._watched), []
        while frame is not None:
            found.append(frame)
            frame = frame.f_back
        return found

    def _waits(self) -> bool:
        """Say whether this process waits for others."""
        names = [str(frame.f_globals.get("__name__", "")) for frame in self._frames()]
        return any(name.startswith("torch.distributed") for name in names)

    def _end(self, still: float) -> None:
        folder = self.folder
        error = RunError(
            f"nothing has moved for {duration(still)} (train.hang_timeout): {self._where()}",
            f"{whole(folder)}: run the same command again; -o train.hang_timeout=7200 allows more "
            "seconds, null waits for ever",
        )
        keep = Logged(Quiet(), folder.log) if folder.path.is_dir() else Quiet()
        with suppress(OSError):
            keep.warn(error.message)
        if self.leave is not None:
            self.leave(error)

    def _where(self) -> str:
        waits, parts = self._waits(), []
        if not waits and (frames := self._frames()):
            code = frames[0].f_code
            at = f"{code.co_filename}:{frames[0].f_lineno} ({code.co_name})"
            parts = [f"{self._name()} is at {at}, after {self._doing}"]
        else:
            parts = [f"{self._name()} waits for the others, after {self._doing}"]
        for number, seen in sorted(self._processes.items()):
            if number != self.rank and seen.silent >= self.limit / 2:
                parts.append(
                    f"process {number} does not answer, after {seen.doing or 'nothing at all'}: "
                    "was it stopped, or is its machine gone?"
                )
        return "; ".join(parts)

    def _name(self) -> str:
        if len(self._processes) == 1:
            return "it"
        return f"process {self.rank} on {socket.gethostname()}"


class Fed:
    """Passes everything on to another reporter, and feeds the watch."""

    def __init__(self, inner: Reporter, watch: Watch) -> None:
        self._inner, self._watch = inner, watch
        self.training = inner.training

    def info(self, message: str) -> None:
        """Pass on one line."""
        self._watch.moved()
        self._inner.info(message)

    def warn(self, message: str) -> None:
        """Pass on one line that deserves attention."""
        self._watch.moved()
        self._inner.warn(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show progress; each unit feeds the watch."""
        self._watch.moved(label)
        with self._inner.progress(label, total) as inner:
            yield _FedProgress(inner, self._watch, label)

    def step(self, step: int) -> None:
        """Say that a step is done."""
        self._watch.stepped(step)
        self._inner.step(step)

    def scalars(self, step: int, values: Any) -> None:
        """Pass on the numbers of a logged step."""
        self._watch.moved()
        self._inner.scalars(step, values)

    def pictures(self, step: int, grid: Path) -> None:
        """Pass on where pictures are."""
        self._watch.moved()
        self._inner.pictures(step, grid)


@dataclass
class _FedProgress:
    inner: Progress
    watch: Watch
    label: str

    def advance(self, count: int = 1) -> None:
        """Count, and feed the watch."""
        self.watch.moved(self.label)
        self.inner.advance(count)
