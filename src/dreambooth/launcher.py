"""Several processes of one run on this machine: started together, stopped together."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dreambooth.errors import EXIT_OK, JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GRACE = 60.0
"""Seconds the others have to finish once one process was asked to stop and has left."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
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
    """Raise `JobError` where the launcher's variables do not say how the processes find each other.

    torch would go on waiting for the others, or fail without a word of the variable. With `port`,
    the one on which the main process will listen has to be free.
    """
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
    SIGINT and SIGTERM are passed on to all of them. Where one fails the others are ended: what
    they wrote is whole at any moment.
    """
    if process_count() > 1:
        raise JobError("--processes inside a process that was launched", "use one launcher only")
    port = free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "dreambooth", *arguments],
            env={**os.environ, **environment(number, processes, port)},
            start_new_session=True,  # a terminal's Ctrl-C comes to us alone, and we pass it on
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )
        for number in range(processes)
    ]
    with passing_on(children):
        return watch(children)


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


@contextmanager
def passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Send SIGINT and SIGTERM on to the processes while the block runs."""

    def forward(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; return the exit code of the first that failed, or 0."""
    failed, deadline = EXIT_OK, float("inf")
    while running := [child for child in children if child.poll() is None]:
        codes = [child.returncode for child in children if child.returncode]
        if codes and not failed:
            failed = codes[0]
            deadline = time.monotonic() + (GRACE if failed in STOPPED else 0.0)
        if time.monotonic() >= deadline:
            for child in running:
                child.kill()
        time.sleep(0.05)
    codes = [child.returncode for child in children if child.returncode]
    failed = failed or (codes[0] if codes else EXIT_OK)
    return 128 - failed if failed < 0 else failed


def _end_with_parent() -> None:
    """Ask Linux to end this child when its parent dies, however that happens."""
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
