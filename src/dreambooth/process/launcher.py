"""Several processes of one run on this machine: started together, stopped together."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from dreambooth import process
from dreambooth.errors import EXIT_OK, JobError
from dreambooth.files import cache_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from queue import SimpleQueue

GRACE = 60.0
"""Seconds the others have to finish once one process was asked to stop and has left."""
AT_ONCE = 5.0
"""Seconds they have after a second Ctrl-C."""
HINT = (
    "launchers (torchrun, accelerate launch, dbt run --processes) set RANK, WORLD_SIZE, "
    "MASTER_ADDR and MASTER_PORT; unset them for a run of one process"
)


def rank() -> int:
    """Return this process's number in the run, as its launcher says; 0 where it is alone."""
    return _number("RANK", 0)


def process_count() -> int:
    """Return how many processes share the run."""
    return _number("WORLD_SIZE", 1)


def require_environment(*, port: bool = True) -> None:
    """Raise `JobError` where the environment is of no use to a run.

    For a user without a home where the store could be; and where the launcher's variables do not
    say how the processes find each other: torch would go on waiting for the others, or fail without
    a word of the variable. With `port`, the one on which the main process will listen has to be
    free.
    """
    cache_root()
    here, count = rank(), process_count()
    _number("LOCAL_RANK", 0)
    if not count or here >= count:
        raise JobError(
            f"RANK is {here} and WORLD_SIZE is {count}: ranks go from 0 to WORLD_SIZE - 1", HINT
        )
    if count == 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise JobError(f"WORLD_SIZE is {count}, and there is no {' and no '.join(missing)}", HINT)
    number = _number("MASTER_PORT", 0)
    if not 0 < number < 2**16:
        raise JobError(f"MASTER_PORT is {number}, which is no port", HINT)
    # torchrun's agent listens there itself, for its workers.
    if port and here == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        require_free(number)


def require_free(port: int) -> None:
    """Raise `JobError` where a port of this machine is taken, or not to be had."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise port_taken(port, error.strerror or "") from error


def port_taken(port: object, why: str) -> JobError:
    """Return the error that tells of the port by which the processes find each other."""
    return JobError(
        f"port {port} of this machine (MASTER_PORT) cannot be used: {why}",
        "name a free port in MASTER_PORT, the same for all processes",
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise JobError(f"the environment variable {name} is {text!r}, not a whole number", HINT)
    return int(text)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m dreambooth ARGUMENTS` as `processes` processes and return the exit code.

    They find each other through the variables that torch's and accelerate's launchers set too.
    Signals are passed on to all of them, and Ctrl-Z stops them until `fg`. Where one fails the
    others are ended: what they wrote is whole at any moment.
    """
    if process_count() > 1:
        raise JobError("--processes inside a process that was launched", "use one launcher only")
    port = free_port()
    with process.noting("SIGTSTP", "SIGCONT") as came:
        process.hold(True)
        try:
            children = [start(arguments, environment(n, processes, port)) for n in range(processes)]
        finally:
            process.hold(False)
        return Watch(children, came).exit_code()


def start(arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one process of a run, in a group of its own.

    A terminal's Ctrl-C comes to us alone, and we pass it on.
    """
    own: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "linux":
        own["preexec_fn"] = _end_with_parent
    if sys.platform == "win32":
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    command = [sys.executable, "-m", "dreambooth", *arguments]
    return subprocess.Popen(command, env={**os.environ, **variables}, **own)


def environment(number: int, processes: int, port: int) -> dict[str, str]:
    """Return the variables by which process `number` finds the others."""
    values: dict[str, Any] = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        # Each would otherwise take all cores.
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // processes)
        ),
    }
    return {name: str(value) for name, value in values.items()}


def free_port() -> int:
    """Return a port of the loopback device that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Watch:
    """Waits for the processes of a run and passes on to them what signals come."""

    def __init__(self, children: Sequence[subprocess.Popen[bytes]], came: SimpleQueue[int]) -> None:
        self._children, self._came = children, came
        self._asked = 0
        self._interrupted = float("inf")
        self._deadline = float("inf")

    def exit_code(self) -> int:
        """Return 0 where all ended well, else what the first that failed left with.

        After a request to stop the main process's code counts: it alone knows what was saved.
        """
        failed = EXIT_OK
        while running := self._running():
            while not self._came.empty():
                self._take(self._came.get())
            codes = self._codes()
            if codes and not failed:
                failed = codes[0]
                stopped = self._asked or failed - 128 in process.stops()
                self._end_by(time.monotonic() + (GRACE if stopped else 0.0))
            if time.monotonic() >= self._deadline:
                for child in running:
                    child.kill()
            time.sleep(0.05)
        codes = self._codes()
        if not failed or self._asked:
            failed = codes[0] if codes else EXIT_OK
        return 128 - failed if failed < 0 else failed

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [child for child in self._children if child.poll() is None]

    def _codes(self) -> list[int]:
        return [child.returncode for child in self._children if child.returncode]

    def _end_by(self, moment: float) -> None:
        self._deadline = min(self._deadline, moment)

    def _take(self, number: int) -> None:
        if number in process.numbers("SIGTSTP"):
            self._stop_until_continued(number)
            return
        now = time.monotonic()
        if number in process.stops():
            self._asked = self._asked or number
        if number == signal.SIGINT:
            if now - self._interrupted >= process.SAME_REQUEST:
                self._end_by(now + AT_ONCE)
            self._interrupted = min(self._interrupted, now)
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for child in self._running():
            if sys.platform == "win32":  # the one signal that reaches a group of its own
                child.send_signal(signal.CTRL_BREAK_EVENT)
            elif number in process.numbers("SIGSTOP", "SIGCONT"):
                os.killpg(child.pid, number)  # what it started, too
            else:
                child.send_signal(number)

    def _stop_until_continued(self, number: int) -> None:
        """Stop all of them and then this process as Ctrl-Z does; go on when `fg` lets it."""
        began = time.monotonic()
        self._pass_on(*process.numbers("SIGSTOP"))
        process.suspend(number)
        self._pass_on(*process.numbers("SIGCONT"))
        self._deadline += time.monotonic() - began


def _end_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, however that happens."""
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
