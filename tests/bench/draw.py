"""Class images of ours against a plain pipeline, in turn in one process.

`python draw.py JOB.json PAIRS` prints JSON: seconds for the same number of pictures, at equal steps
and guidance, of ours, of a pipeline called as diffusers' script calls it by default (four pictures
a call, written as JPEG), and of one call for all of them. Ours keeps latents and decodes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from steps import timed

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.jobs.loading import load_job

SCRIPT_ROWS = 4
"""The script's own `--sample_batch_size`."""


def main() -> None:
    job, pairs = load_job(Path(sys.argv[1])), int(sys.argv[2])
    prompt, count = "a photo of a dog", job.prior.batch_size  # type: ignore[attr-defined]
    steps, (height, width) = job.sampler.sampling_steps(), job.data.size
    pipe = StableDiffusionPipeline.from_pretrained(job.model.source)  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    folder = Path(sys.argv[1]).with_suffix(".drawn")
    folder.mkdir(exist_ok=True)
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
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

        def plain(rows: int = count) -> None:
            for first in range(0, count, rows):
                prompts = [prompt] * min(rows, count - first)
                drawn = pipe(prompts, num_inference_steps=steps, height=height, width=width)
                for number, image in enumerate(drawn.images):
                    image.save(folder / f"{first + number}.jpg")

        ways = {"ours": ours, "script": lambda: plain(SCRIPT_ROWS), "plain": plain}
        for way in ways.values():
            way()
        seconds = {name: [] for name in ways}
        for _ in range(pairs):
            for name, way in ways.items():
                seconds[name].append(timed(way))
        job.prior.open(ctx, model, job.sampler, schedule)
        seconds["cached"] = [
            timed(lambda: job.prior.open(ctx, model, job.sampler, schedule)) for _ in range(pairs)
        ]
    print(json.dumps({**seconds, "count": count, "steps": steps, "precision": precision.name}))


if __name__ == "__main__":
    main()
