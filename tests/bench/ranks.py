"""What sharing a step costs: two processes of one thread, against one alone on the same machine.

`python ranks.py JOB.json PAIRS` starts both and prints JSON: seconds of a step of one process
alone, of both at once without a sum, and of both as they train, in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.parallel import Parallel
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import Session, open_session
from dreambooth.engine.step import train_step
from dreambooth.jobs.loading import load_job
from dreambooth.process.launcher import environment, free_port

WARM = 3


def timed(session: Session, way: str, shared: Parallel) -> float:
    """Return the seconds of one step; `alone` the main process takes it, and the other waits."""
    devices = session.ctx.devices
    assert devices is not None
    session.parallel = shared if way == "shared" else Parallel()
    devices.wait()
    began = time.perf_counter()
    if way == "alone" and devices.is_main:
        session.ctx.devices = replace(devices, world_size=1)
        train_step(session)
        session.ctx.devices = devices
    elif way != "alone":
        train_step(session)
    devices.wait()
    return time.perf_counter() - began


def measure(path: Path, pairs: int) -> None:
    job = load_job(path)
    with open_devices(job.train) as devices:
        torch.set_num_threads(1)
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        session = open_session(ctx, job.data.scan(ctx))
        shared, found = session.parallel, {way: [] for way in ("alone", "both", "shared")}
        for number in range(WARM + pairs):
            for way, seconds in found.items():
                taken = timed(session, way, shared)
                if number >= WARM:
                    seconds.append(taken)
        if devices.is_main:
            print(json.dumps(found))


def main() -> None:
    if "RANK" in os.environ:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
        return
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **environment(n, 2, port), "OMP_NUM_THREADS": "1"},
        )
        for n in range(2)
    ]
    sys.exit(max(process.wait() for process in processes))


if __name__ == "__main__":
    main()
