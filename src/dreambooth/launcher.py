"""Several processes of one run on this machine: started together, stopped together."""

from __future__ import annotations

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


def rank() -> int:
    """Return this process's number in the run, as its launcher says; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
