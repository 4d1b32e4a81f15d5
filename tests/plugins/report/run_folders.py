"""Run folders made up for the report's tests: drawn in moments, shaped as a run leaves them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

PROMPTS = (
    "a photo of a ck fox on the beach",
    "a photo of a ck fox in the snow",
    "an oil painting of a ck fox reading a newspaper",
    "a photo of a fox",
)
COLOURS = ((233, 126, 49), (72, 130, 200), (110, 180, 90), (190, 90, 160))


def picture(kind: int, ripe: float, side: int, seed: int = 0) -> Image.Image:
    """Draw a picture with grain: noise that turns into a face as `ripe` goes from 0 to 1."""
    rng = random.Random(kind * 1000 + seed)
    ground, fur = COLOURS[kind % 4], COLOURS[(kind + 1 + seed) % 4]
    ripe = min(1.0, max(0.05, ripe))
    small = Image.effect_noise((side, side), 90 * (1.2 - ripe)).convert("RGB")
    image = Image.blend(Image.new("RGB", (side, side), ground), small, 0.6 * (1.1 - ripe))
    draw, s, shift = ImageDraw.Draw(image), side, rng.uniform(-0.08, 0.08) * side
    r = s * (0.2 + 0.16 * ripe)
    x, y = s / 2 + shift, s * 0.55
    for sign in (-1, 1):
        draw.polygon([(x + sign * r, y - r * 1.5), (x, y - r * 0.6), (x + sign * r, y)], fill=fur)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fur)
    for sign in (-1, 1):
        e = r * 0.12 * (0.4 + ripe)
        ex = x + sign * r * 0.4
        draw.ellipse((ex - e, y - e * 2.2, ex + e, y + e), fill=(30, 24, 24))
    draw.ellipse((x - r * 0.14, y + r * 0.3, x + r * 0.14, y + r * 0.5), fill=(30, 24, 24))
    return image.filter(ImageFilter.GaussianBlur(side / 256 * (1.6 - ripe)))


def write_run(
    root: Path,
    name: str = "my-fox",
    *,
    steps: int = 800,
    every: int = 100,
    prompts: tuple[str, ...] = PROMPTS,
    per_prompt: int = 2,
    side: int = 256,
    photos: int = 4,
    log_every: int = 10,
    measured: bool = True,
    found: bool = True,
    changes: dict[str, Any] | None = None,
    lift: float = 0.0,
    captions: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
) -> Path:
    """Write a finished run and the photographs it learned from; return the run's folder."""
    run = root / "runs" / name
    run.mkdir(parents=True)
    images = _photos(root / "pictures", photos, side, captions, names)
    job = _job(root, name, steps, every, list(prompts), side, changes or {})
    (run / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps(_manifest(job, images)), encoding="utf-8")
    _metrics(run, steps, log_every)
    for step in range(0, steps + 1, every):
        _samples(run, name, step, steps, prompts, per_prompt, side)
        if measured and step:
            _evaluation(run, step, steps, prompts, per_prompt, lift)
    if found:
        _findings(run, every)
    (run / "run.log").write_text(
        f"2026-11-20T10:00:00+00:00 info run {name}\n2026-11-20T10:21:07+00:00 info {run}\n"
    )
    return run


def _photos(
    folder: Path, count: int, side: int, captions: tuple[str, ...], names: tuple[str, ...]
) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    found = {}
    for i in range(count):
        path = folder / (names[i] if i < len(names) else f"{i:02d}.png")
        if not path.exists():
            picture(i, 1.0, wide := side * 3 // 2, 7).crop(
                (0, side // 3, wide, side // 3 + side)
            ).save(path)
        if i < len(captions):
            path.with_suffix(".txt").write_text(captions[i], encoding="utf-8")
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _job(
    root: Path,
    name: str,
    steps: int,
    every: int,
    prompts: list[str],
    side: int,
    changes: dict[str, Any],
) -> dict[str, Any]:
    from dreambooth.job import Job

    data = {
        "name": name,
        "output": str(root / "runs"),
        "model": {"kind": "stable_diffusion", "source": str(root / "models" / "sd15")},
        "subject": {"identifier": "ck", "class_noun": "fox"},
        "data": {"kind": "folder", "path": str(root / "pictures"), "resolution": side},
        "optimizer": {"kind": "adamw"},
        "train": {"steps": steps},
        "samples": {"every": every, "prompts": prompts},
    }
    for key, value in changes.items():
        section, _, option = key.partition(".")
        data[section] = {**data.get(section, {}), option: value}
    return Job.model_validate(data).resolved()


def _manifest(job: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    return {
        "job": job,
        "processes": 1,
        "versions": {"dreambooth-trainer": "0.2.0", "python": "3.12.1", "torch": "2.13.0"},
        "machine": {"device": "cuda", "device_name": "NVIDIA RTX 4090", "precision": "bf16"},
        "plugins": [{"name": "default-loss", "distribution": "dreambooth-trainer", "version": "1"}],
        "model": {"unet": "60ff24493aaa92235132948207c880cc4266734da75308e5de8c3c4b4436abca"},
        "images": images,
        "held_out": [],
        "trainable": {"unet": 859_520_964},
        "result": {
            "steps": job["train"]["steps"],
            "checks": ["diffusers: opened with diffusers: 378 weights equal"],
            "scalars": {},
            "files": {"final/unet/diffusion_pytorch_model.safetensors": 3_438_167_540},
        },
    }


def _metrics(run: Path, steps: int, every: int) -> None:
    rng = random.Random(1)
    lines, times = [], []
    for step in range(every, steps + 1, every):
        part = step / steps
        own = 0.05 + 0.1 * math.exp(-4 * part) + rng.gauss(0, 0.012)
        prior = 0.11 + rng.gauss(0, 0.02)
        values = {"train/loss": own + prior, "train/loss_instance": own, "train/loss_prior": prior}
        values |= {"train/grad_norm": 1 + rng.random(), "train/lr": 5e-6}
        if step % (every * 5) == 0:
            values["validation/loss"] = 0.14 - 0.04 * part + 0.03 * part**2
        lines.append(json.dumps({"step": step, **values}))
        times.append(json.dumps({"step": step, "seconds": every * 0.9, "steps": every}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "timings.jsonl").write_text("\n".join(times) + "\n")


def seed_of(prompt: str, number: int) -> int:
    return int(hashlib.sha256(f"{prompt}{number}".encode()).hexdigest()[:7], 16)


def _samples(
    run: Path,
    name: str,
    step: int,
    steps: int,
    prompts: tuple[str, ...],
    per_prompt: int,
    side: int,
) -> None:
    folder = run / "samples" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    rows = []
    for i, prompt in enumerate(prompts):
        for number in range(per_prompt):
            file = f"{len(rows):03d}.png"
            picture(i, step / steps, side, number).save(folder / file, compress_level=1)
            seed = seed_of(prompt, number)
            rows.append({"file": file, "prompt": prompt, "seed": seed, "step": step, "run": name})
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")


def _evaluation(
    run: Path, step: int, steps: int, prompts: tuple[str, ...], per_prompt: int, lift: float
) -> None:
    rng = random.Random(f"{run.name}{step}")
    part = step / steps
    like = 0.31 + 0.44 * (1 - math.exp(-3 * part)) + lift
    free = 0.30 - 0.07 * max(0.0, part - 0.5) * 2
    pictures = [
        {
            "prompt": prompt,
            "seed": seed_of(prompt, number),
            "values": {
                "subject_similarity": like + rng.gauss(0, 0.02),
                "prompt_alignment": free + rng.gauss(0, 0.01),
            },
        }
        for prompt in prompts
        for number in range(per_prompt)
    ]
    measures = [
        {"name": "subject_similarity", "value": like, "stderr": 0.02, "n": len(pictures)}
        | {"baseline": 0.31, "real": 0.74, "better": "higher"},
        {"name": "prompt_alignment", "value": free, "stderr": 0.008, "n": len(pictures)}
        | {"baseline": 0.31, "better": "higher"},
    ]
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    (folder / f"step-{step:06d}.json").write_text(
        json.dumps(
            {
                "version": 1,
                "step": step,
                "encoder": "DINO ViT-S/16",
                "metrics": measures,
                "pictures": pictures,
            }
        )
    )


def _findings(run: Path, every: int) -> None:
    rows = [
        {
            "id": "learned",
            "mark": "good",
            "sentence": "It has learned your fox: samples are as close to your photos as the "
            "photos are to each other (0.71 against 0.74).",
            "evidence": f"samples/step-{every * 4:06d}",
            "next": "",
        },
        {
            "id": "ignored",
            "mark": "look",
            "sentence": "It ignores “in the snow” from step 600 on (text match 0.29 to 0.22).",
            "evidence": f"samples/step-{every * 6:06d}",
            "next": "Lower the rank or the learning rate.",
        },
        {
            "id": "copying",
            "mark": "problem",
            "sentence": "It is beginning to copy: a sample at the last step is nearly photo 3.",
            "evidence": f"samples/step-{every * 8:06d}",
            "next": f"Try step {every * 4} or fewer steps.",
        },
    ]
    (run / "findings.json").write_text(json.dumps({"version": 1, "findings": rows}))
