"""What happens around steps: logging, checkpoints, memory and step time as a run gets longer.

`python costs.py JOB.json` runs the job and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from dreambooth.engine import events, loop
from dreambooth.engine.loop import run
from dreambooth.jobs.loading import load_job


def resident() -> int:
    """Return the process's memory in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    spent: dict[str, float] = {"steps": 0.0, "around": 0.0, "samples": 0.0}
    memory: list[tuple[int, int]] = []
    seconds: list[float] = []
    after, step, sample = events.Events.after_step, loop.train_step, events.Events.sample

    def clocked(name: str, call: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = call(*args, **kwargs)
            took = time.perf_counter() - began
            spent[name] += took
            if name == "steps":
                seconds.append(took)
                if len(seconds) % 50 == 0:
                    memory.append((len(seconds), resident()))
            return result

        return inner

    loop.train_step = clocked("steps", step)
    events.Events.after_step = clocked("around", after)  # type: ignore[method-assign]
    events.Events.sample = clocked("samples", sample)  # type: ignore[method-assign]
    result = run(load_job(Path(sys.argv[1])))
    timing = json.loads((result.folder / "manifest.json").read_text())["first_step_seconds"]
    print(json.dumps({**spent, "memory": memory, "seconds": seconds, "set_up": timing}))


if __name__ == "__main__":
    main()
