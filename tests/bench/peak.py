"""Memory of a few steps: what was measured, beside what the plan computes.

`python peak.py JOB.json` prints JSON: peak bytes of the process, what the program alone takes
(everything imported, nothing loaded), and the plan's figure.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from costs import resident

from dreambooth.engine.context import EngineContext
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import train_step
from dreambooth.jobs.loading import load_job

STEPS = 3


def main() -> None:
    job = load_job(Path(sys.argv[1]))
    planned = make_plan(job, Quiet()).memory.total
    alone = resident()
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        session = open_session(ctx, job.data.scan(ctx))
        for _ in range(STEPS):
            train_step(session)
        held = sum(p.numel() for p in session.state.parameters.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "alone": alone, "planned": planned, "trained": held}))


if __name__ == "__main__":
    main()
