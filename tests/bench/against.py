"""Ours against diffusers' DreamBooth scripts: speed, memory, a whole run."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import models
import torch
from harness import LORA, Bench, Row, ratio, step_seconds

SKIP = 3
"""Steps of the script that are not counted: it warms up, as ours does before it is timed."""


def against_peer(bench: Bench) -> None:
    """Steps a second and memory against diffusers' script, with and without the text encoder."""
    small = bench.size.name == "small"
    cases = {
        "frozen": (["unet"], [], 1.35 if small else 1.75),
        "trained": (["unet", "text_encoder"], ["--train_text_encoder"], 1.2 if small else 1.5),
    }
    for name, (parts, options, goal) in cases.items():
        freezing = {"kind": "components", "train": parts}
        peaks = compare(bench, f"text encoder {name}", freezing, options, (goal, 1.0))
        if name == "frozen" and not small:
            eight = {"freezing": freezing, "optimizer": {"kind": "adamw8bit", "lr": 1e-6}}
            leaner(bench, "8-bit Adam", peaks, 0.7, **eight)


def lora(bench: Bench) -> None:
    """Steps a second and memory of a LoRA against diffusers' script for it."""
    goal = 1.3 if bench.size.name == "small" else 1.75
    peaks = compare(bench, "LoRA", LORA, [], (goal, 0.9), script="train_dreambooth_lora.py")
    if bench.size.name == "small":  # the libraries are most of the memory there
        return
    saving = {"gradient_checkpointing": True}
    leaner(bench, "LoRA, checkpointing", peaks, 0.75, freezing=LORA, train=saving)
    half = {**saving, "precision": "bf16"}
    leaner(bench, "LoRA, checkpointing, bf16 base", peaks, 0.5, freezing=LORA, train=half)


def lora_sdxl(bench: Bench) -> None:
    """A LoRA of SDXL against diffusers' script: the loss of its first step, speed and memory.

    The tiny model with random weights, or the real one's sizes; there for a step that is timed
    after one that warms up, in bfloat16 on both sides.
    """
    real = bench.size.name == "sdxl"
    folder = bench.model if real else models.tiny_sdxl()
    inner = replace(bench, model=folder, size=models.SIZES["sdxl" if real else "tiny-sdxl"])
    skip = 1 if real else SKIP
    precision = "bf16" if real else "fp32"
    options = ["--rank=4", "--center_crop", *(["--mixed_precision=bf16"] if real else [])]
    model = {"kind": "sdxl", "source": str(folder)}
    train = {"steps": inner.size.steps, "batch_size": 1, "precision": precision}
    job = inner.job("sdxl", model=model, freezing=LORA, train=train)
    ratios, shares, theirs = [], [], []
    for _ in range(inner.rounds if not real else 1):
        ours = inner.measured("steps.py", job, inner.size.steps - skip, "alone")["ours"]
        marks = inner.peer("sdxl", *options, script="train_dreambooth_lora_sdxl.py")
        theirs.append(median(step_seconds(marks, skip)))
        ratios.append(theirs[-1] / median(ours))
        shares.append(inner.measured("peak.py", job)["peak"] / marks["peak_bytes"])
    name = "SDXL's size" if real else "the tiny SDXL"
    loss = inner.measured("equal_loss.py", job, inner.work / "peer-sdxl.json.safetensors")
    note = f"ours {loss['ours']:.6f}, theirs {loss['theirs']:.6f}"
    goal = 1e-2 if real else 1e-5
    bench.rows.append(Row(f"loss of a step apart, {name}", loss["apart"], "", goal, note=note))
    note = f"theirs {median(theirs):.3g} s a step, {precision}"
    what = f"steps a second against the script, LoRA of {name}"
    bench.rows.append(ratio(what, ratios, 1.0, at_least=True, note=note))
    what = f"peak memory against the script, LoRA of {name}"
    bench.rows.append(ratio(what, shares, 1.0, at_least=False))


def compare(
    bench: Bench,
    name: str,
    freezing: dict[str, Any],
    options: list[str],
    goals: tuple[float, float],
    script: str = "train_dreambooth.py",
) -> list[int]:
    """Measure steps a second and peak memory of ours and of a script, in turn.

    Returns the script's peaks in bytes.
    """
    job = bench.job("peer", freezing=freezing)
    ratios, theirs, peaks = [], [], []
    for _ in range(bench.rounds):
        ours = bench.measured("steps.py", job, bench.size.steps - SKIP, "alone")["ours"]
        marks = bench.peer("script", *options, script=script)
        theirs.append(median(step_seconds(marks, SKIP)))
        ratios.append(theirs[-1] / median(ours))
        peaks.append(marks["peak_bytes"])
    note = f"theirs {median(theirs):.3g} s a step"
    what = f"steps a second against the script, {name}"
    bench.rows.append(ratio(what, ratios, goals[0], at_least=True, note=note))
    leaner(bench, name, peaks, goals[1], freezing=freezing)
    return peaks


def leaner(bench: Bench, name: str, theirs: list[int], goal: float, **sections: Any) -> None:
    """Measure the peak memory of a job against a script's."""
    peak = bench.measured("peak.py", bench.job("lean", **sections))["peak"]
    note = f"ours {peak / 2**30:.2f} GiB, theirs {median(theirs) / 2**30:.2f}"
    what = f"peak memory against the script, {name}"
    shares = [peak / other for other in theirs]
    bench.rows.append(ratio(what, shares, goal, at_least=False, note=note))


def whole_run(bench: Bench) -> None:
    """Shell to exported result: 300 steps at 2 + 2 rows, 40 class images, text encoder trained.

    Both draw the class images, the script with its own 50 steps; ours draws samples as well.
    """
    longer = replace(bench, size=replace(bench.size, rows=2, steps=300))
    sections = {
        "freezing": {"kind": "components", "train": ["unet", "text_encoder"]},
        "samples": {"every": 100, "per_prompt": 4},
    }
    _, ours = longer.call("-m", "dreambooth", "run", longer.job("whole", **sections), cache="whole")
    drawn = longer.work / "class-drawn"
    theirs = longer.peer("whole", "--train_text_encoder", class_folder=drawn)["wall"]
    note = f"once; ours {ours:.0f} s with samples at three steps, theirs {theirs:.0f} s"
    bench.rows.append(Row("a whole short run", ours / theirs, "x", 0.65, note=note))


def precision_rule(bench: Bench) -> None:
    """Training steps in bfloat16 against float32, on both sides of the rule's bounds.

    Where the rule takes bfloat16 it should be faster, and elsewhere not much faster than float32.
    """
    from dreambooth.engine.devices.automatic import Size, bf16_pays_on_a_cpu
    from dreambooth.engine.devices.precision import has_bf16_units

    if not has_bf16_units(torch.device("cpu")):
        bench.rows.append(Row("precision rule", None, "x", note="this CPU has no bfloat16 units"))
        return
    for cells in (16, 32):
        found = bench.measured("halves.py", bench.model, cells, bench.pairs)
        takes = bf16_pays_on_a_cpu(Size(found["parameters"], cells * cells))
        what = f"bf16 against fp32, {cells} x {cells} latents: auto takes {'bf' if takes else 'fp'}"
        pairs = [a / b for a, b in zip(found["fp32"], found["bf16"], strict=True)]
        goal = 1.0 if takes else 1.15
        bench.rows.append(ratio(f"{what}{16 if takes else 32}", pairs, goal, at_least=takes))


def precision(bench: Bench) -> None:
    """Our `precision: auto` against the script's float32, where the CPU has bfloat16 units."""
    from dreambooth.engine.devices.precision import has_bf16_units

    what, goal = "steps a second, precision auto, against the script's fp32", 2.4
    if not has_bf16_units(torch.device("cpu")):
        bench.rows.append(Row(what, None, "x", goal, True, note="this CPU has no bfloat16 units"))
        return
    ours = bench.measured("steps.py", bench.job("auto", train={"precision": "auto"}), bench.pairs)
    theirs = median(step_seconds(bench.peer("fp32"), SKIP))
    goal = goal if bench.size.name == "sd15" else 1.35
    bench.rows.append(ratio(what, [theirs / s for s in ours["ours"]], goal, at_least=True))
