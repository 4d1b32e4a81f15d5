"""Where the time of a step goes, by torch's profiler.

`python where.py JOB.json STEPS` trains a few steps without and then STEPS steps with the profiler,
and prints the operators that took the most time of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import train_step
from dreambooth.jobs.loading import load_job

WARM_UP = 2
ROWS = 18


def main() -> None:
    job, steps = load_job(Path(sys.argv[1])), int(sys.argv[2])
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        session = open_session(ctx, job.data.scan(ctx))
        for _ in range(WARM_UP):
            train_step(session)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                with record_function("step"):
                    train_step(session)
    averages = profiler.key_averages()
    print(averages.table(sort_by="self_cpu_time_total", row_limit=ROWS, max_name_column_width=60))


if __name__ == "__main__":
    main()
