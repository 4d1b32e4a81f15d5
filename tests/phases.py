"""Memory of every phase of a run: what was measured, beside what the plan counts.

`python tests/phases.py JOB.json` runs the job in this process and prints JSON: by phase the peak of
the process in bytes beyond what the program alone takes, and the plan's figure. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dreambooth.engine.cost import residency
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.job import Job
from dreambooth.jobs.loading import load_job

LIBC = ctypes.CDLL(None)


def status(name: str) -> int:
    """Return a line of the process's status in bytes."""
    text = Path("/proc/self/status").read_text()
    return next(int(s.split()[1]) for s in text.splitlines() if s.startswith(name)) * 1024


class Watch:
    """Peaks of the process, by the phase it was in."""

    def __init__(self) -> None:
        self.phase = ""
        self.peaks: dict[str, int] = {}
        self.alone = 0

    def begin(self, phase: str) -> None:
        """Keep the peak of the phase that ends and start anew: what was freed is given back."""
        if self.phase:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), status("VmHWM"))
        self.phase = phase
        gc.collect()
        LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held


def warm_up(job: Job) -> None:
    """Run the job with the embedded base, all anew: the program is whatever only a run touches.

    Libraries, code that is paged in, and what the matrix library keeps for shapes it has seen.
    """
    base = {"kind": "stable_diffusion", "source": "builtin:emoji-64"}
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"DREAMBOOTH_CACHE": f"{folder}/cache"}),
    ):
        values = job.resolved()
        data = {**values["data"], "resolution": 64}
        run(Job(**{**values, "model": base, "data": data, "output": folder}))


def main() -> None:
    job, watch = load_job(Path(sys.argv[1])), Watch()
    warm_up(job)
    planned = {p.phase: p.total for p in make_plan(job, Quiet()).phases}
    enter = residency.Residency.enter

    def watched(self: Any, phase: str, model: Any) -> None:
        enter(self, phase, model)  # type: ignore[arg-type]
        watch.begin(phase)

    residency.Residency.enter = watched  # type: ignore[method-assign, assignment]
    watch.begin("")
    watch.alone = status("VmRSS")
    run(job)
    watch.begin("")
    peaks = {name: peak - watch.alone for name, peak in watch.peaks.items()}
    print(json.dumps({"planned": planned, "measured": peaks, "alone": watch.alone}))


if __name__ == "__main__":
    main()
