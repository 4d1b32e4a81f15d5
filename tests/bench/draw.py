"""Class images of ours against a plain pipeline, in turn in one process.

`python draw.py JOB.json PAIRS` prints JSON: seconds a batch of each, at equal steps and guidance.
The pipeline is called as diffusers' script calls it; ours keeps latents and decodes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from steps import timed

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import resolve_precision
from dreambooth.jobfile import load_job


def main() -> None:
    job, pairs = load_job(Path(sys.argv[1])), int(sys.argv[2])
    prompt, count = "a photo of a dog", job.prior.batch_size  # type: ignore[attr-defined]
    steps, (height, width) = job.sampler.sampling_steps(), job.data.size
    pipe = StableDiffusionPipeline.from_pretrained(job.model.source)  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    with open_devices(job.train) as devices:
        precision = resolve_precision(job, devices, None)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        model = job.model.open(ctx)
        schedule = job.scheduler.open(model.info)
        solver = schedule.solver_config(job.data.size, steps)

        @torch.no_grad()
        def ours() -> None:
            job.sampler.sample(
                model, [prompt] * count, seeds=range(count), size=job.data.size,
                solver_config=solver, ctx=ctx,
            )  # fmt: skip

        def plain() -> None:
            pipe([prompt] * count, num_inference_steps=steps, height=height, width=width)

        ours(), plain()
        seconds = {"ours": [], "plain": []}
        for _ in range(pairs):
            seconds["ours"].append(timed(ours))
            seconds["plain"].append(timed(plain))
        job.prior.open(ctx, model, job.sampler, schedule)
        seconds["cached"] = [
            timed(lambda: job.prior.open(ctx, model, job.sampler, schedule)) for _ in range(pairs)
        ]
    print(json.dumps({**seconds, "count": count, "steps": steps, "precision": precision.name}))


if __name__ == "__main__":
    main()
