"""Who works on a run: one process at a time, on one machine or on several."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError, RunError
from dreambooth.files import read_object, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK, HOLDER = ".lock", ".lock.json"
"""The file that flock takes, and the one that serves where the file system has no flock."""
NO_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
"""What file systems without flock answer: Lustre, some NFS, some containers."""
BEAT, DEAD_AFTER = 30.0, 300.0
"""Seconds between two signs of life of a holder, and without one after which it counts as gone."""
SETTLING = 0.5
"""Seconds in which a process that takes a dead holder's place at the same moment shows itself."""
GLANCES, GLANCE = 4, 0.05
"""A dry run holds the lock for an instant, to see whether it is free: ask so often, so soon."""


@contextmanager
def hold(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Own a run's folder for the block; a crash leaves no lock behind. `RunError` if owned.

    Where the file system has no flock, `warn` is told, and a file that names host, process and
    boot stands for it (see `Holder`).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise JobError(
            f"cannot write into {folder}: {error.strerror or error}",
            "name a folder you may write to in output (or -o output=...)",
        ) from error
    try:
        if flocked(file, folder):
            yield
            return
        if sys.platform != "win32":
            warn(
                f"the file system of {folder} has no locks (flock): {HOLDER} stands for one, which "
                f"other machines heed for {DEAD_AFTER / 60:.0f} minutes if this process dies"
            )
        else:  # no folder can be moved aside while a file in it is open
            os.close(file)
            file = -1
        with Holder(folder / HOLDER).held():
            yield
    finally:
        if file >= 0:
            os.close(file)


def require_free(folder: Path) -> None:
    """Raise `RunError` where another process works on the run; nothing new stays there."""
    if not (folder / LOCK).is_file():
        return
    try:
        file = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return  # that it cannot be written is told as such
    try:
        if not flocked(file, folder):
            Holder(folder / HOLDER).require_free()
    finally:
        os.close(file)


def flocked(file: int, folder: Path) -> bool:
    """Take the lock; False where there is no flock, `RunError` where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    for glance in range(GLANCES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if glance == GLANCES - 1:
                raise taken(folder) from error
            time.sleep(GLANCE)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise
        else:
            return True
    raise AssertionError


def taken(folder: Path, who: str = "", hint: str = "") -> RunError:
    """Return the error that tells of another process."""
    return RunError(
        f"another process is running {folder}{who}",
        hint or "wait for it, stop it, or give this job another name",
    )


class Holder:
    """A lock file with the facts by which others judge whether its process still lives.

    On the same boot and in the same process namespace that is known: the process is there, and
    began when it says. A host that has booted since then has no such process. Of any other host
    nothing is known but the file's age: its holder touches it every `BEAT` seconds, and after
    `DEAD_AFTER` of them by the file system's own clock it counts as gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = {**this_process(), "token": uuid.uuid4().hex}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file for the block, giving signs of life."""
        self._take()
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), name="lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            if self._is_mine():
                self._path.unlink(missing_ok=True)

    def require_free(self) -> None:
        """Raise `RunError` where the file's process lives, or may."""
        other = read_facts(self._path)
        if other is not None and self._lives(other):
            raise taken(
                self._path.parent,
                f" (process {other.get('pid')} of {other.get('host')})",
                f"wait for it or stop it; if it is gone, remove {self._path}",
            )

    def _take(self) -> None:
        text = json.dumps(self._mine).encode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            self.require_free()
            write_json(self._path, self._mine)
            time.sleep(SETTLING)
            if not self._is_mine():
                raise taken(self._path.parent) from None
            return
        with os.fdopen(file, "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(file)

    def _lives(self, other: dict[str, Any]) -> bool:
        here = this_process()
        if all(here[k] and here[k] == other.get(k) for k in ("boot", "namespace")):
            return other.get("began") == began_at(other.get("pid"))
        if here["boot"] and here["host"] == other.get("host") and here["boot"] != other.get("boot"):
            return False
        return self._age() < DEAD_AFTER

    def _age(self) -> float:
        """Return the seconds since the last sign of life, both times from the file system."""
        probe = self._path.with_name(f"{LOCK}.{self._mine['token']}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")
        finally:
            probe.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return bool((read_facts(self._path) or {}).get("token") == self._mine["token"])

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            try:
                if self._is_mine():
                    os.utime(self._path)
            except OSError:
                continue  # the disk is away for a moment: whoever writes next tells of it


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says; None where there is none, nothing where it cannot be read."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def this_process() -> dict[str, Any]:
    """Return what tells this process from any other: host, boot, namespace, number, beginning."""
    return {
        "host": socket.gethostname(),
        "boot": _line("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "began": began_at(os.getpid()),
    }


def began_at(pid: object) -> int | None:
    """Return when a process of this machine began, in clock ticks since boot; None if it ended."""
    if not isinstance(pid, int) or not sys.platform.startswith("linux"):
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    after_name = _line(f"/proc/{pid}/stat").rpartition(")")[2].split()
    ended = len(after_name) <= 19 or after_name[0] in ("Z", "X")
    return None if ended else int(after_name[19])


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
