"""How fast it is, against the arithmetic and against diffusers' script: `make bench SIZE=small`.

Every figure is a ratio of times from one call, taken in turn, as the median of pairs. Nothing here
passes or fails a test: goals that are missed are said.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import models
import typer
from against import against_peer, lora, lora_sdxl, precision, precision_rule, whole_run
from harness import LORA, Bench, Row, ratio
from rich.console import Console
from rich.table import Table

MANY = 5000


def overhead(bench: Bench) -> None:
    """A step of ours against a bare loop."""
    found = bench.measured("steps.py", bench.job("overhead"), bench.pairs)
    pairs = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    goal = 1.05 if bench.size.name == "sd15" else 1.20
    note = f"bare {median(found['bare']):.3g} s; losses apart {found['losses_apart']:.1e}"
    bench.rows.append(ratio("step against a bare loop", pairs, goal, at_least=False, note=note))
    bench.rows.append(Row("reading a batch", 1e3 * median(found["batch"]), "ms"))


def drawing(bench: Bench) -> None:
    """Class images a second against the script's calls of a pipeline, and one call for all."""
    goal = 1.5 if bench.size.name == "small" else 1.0
    found = bench.measured("draw.py", bench.job("draw"), bench.pairs)
    rate = found["count"] / median(found["ours"])
    note = f"{rate:.2g} pictures a second at {found['steps']} steps, {found['precision']}"
    for name, way in (("the script's calls", "script"), ("a single call", "plain")):
        pairs = [b / a for a, b in zip(found["ours"], found[way], strict=True)]
        asked = goal if way == "script" else 1.0
        what = f"class images a second, against {name}"
        bench.rows.append(ratio(what, pairs, asked, at_least=True, note=note))
    bench.rows.append(Row("opening a class set that is there", median(found["cached"]), "s", 1.0))


def first_step(bench: Bench) -> None:
    """Seconds from the shell to the first logged step, everything cached."""
    options = {"train": {"steps": 1}, "log": {"every": 1}, "trackers": []}
    bench.call("-m", "dreambooth", "run", bench.job("first", **options))
    seconds = []
    for number in range(3):
        job = bench.job(f"first-{number}", **options)
        seconds.append(until_first_step(bench, job))
    goal = 4.0 if bench.size.name == "small" else None
    row = Row("shell to first step, cached", median(seconds), "s", goal)
    row.spread = (min(seconds), max(seconds))
    bench.rows.append(row)


def until_first_step(bench: Bench, job: Path) -> float:
    """Run a job of one step and return when its first step was shown."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dreambooth", "run", str(job), "--fresh"],
        env={**os.environ, "DREAMBOOTH_CACHE": str(bench.work / "cache"), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seconds = 0.0
    for line in process.stdout:
        if "step 1/1" in line and not seconds:  # a time stamp stands before it
            seconds = time.monotonic() - began
    if process.wait() or not seconds:
        sys.exit(f"{job}: the run failed, or showed no first step")
    return seconds


def around(bench: Bench) -> None:
    """What logging and checkpoints cost, and whether step time and memory stay flat."""
    steps = 1500 if bench.size.name == "small" else 12
    options = {"train": {"steps": steps}, "checkpoints": {"every": "auto"}, "log": {"every": 10}}
    found = bench.measured("costs.py", bench.job("costs", **options))
    share = (found["around"] - found["samples"]) / found["steps"]
    bench.rows.append(Row("logging and checkpoints", 100 * share, "%", 2.0))
    if bench.size.name == "small":
        growth(bench, f"{steps:,} steps", found)


def long_run(bench: Bench) -> None:
    """Step time and memory over 10,000 steps, with the smallest model there is."""
    options = {
        "model": {"source": "builtin:tiny"},
        "data": {"resolution": 32},
        "train": {"steps": 10_000},
        "log": {"every": 10},
    }
    growth(bench, "10,000 steps", bench.measured("costs.py", bench.job("long", **options)))


def growth(bench: Bench, name: str, found: dict[str, Any]) -> None:
    """Add rows on whether steps get slower, and the process larger, towards the end of a run."""
    seconds = found["seconds"]
    quarter = len(seconds) // 4
    slower = median(seconds[-quarter:]) / median(seconds[quarter : 2 * quarter])
    bench.rows.append(Row(f"{name}: step time, last against second quarter", slower, "x", 1.05))
    (_, early), *_, (_, late) = found["memory"][len(found["memory"]) // 10 :]
    bench.rows.append(Row(f"{name}: memory, end against a tenth", late / early, "x", 1.02))


def memory(bench: Bench) -> None:
    """What freezing saves: measured peak above the bare program, beside the planned figure."""
    parts = {
        "UNet and text encoder": ["unet", "text_encoder"],
        "UNet": ["unet"],
        "text encoder": ["text_encoder"],
    }
    policies = {n: {"kind": "components", "train": p} for n, p in parts.items()}
    policies["a LoRA of the UNet"] = LORA
    for name, freezing in policies.items():
        found = bench.measured("peak.py", bench.job("memory", freezing=freezing))
        used = (found["peak"] - found["alone"]) / 2**30
        note = f"planned {found['planned'] / 2**30:.2f} GiB; {found['trained'] / 1e6:.1f} M train"
        bench.rows.append(Row(f"memory, training {name}", used, "GiB", note=note))


def many_pictures(bench: Bench) -> None:
    """Step time with 5 instance images and 40 drawn class images, and with 5,000 of each."""
    if bench.size.name != "small":
        return
    folder = models.pictures(bench.work, MANY, bench.size.resolution)
    others = shutil.copytree(folder, folder.with_name("class"), dirs_exist_ok=True)
    sections = {"data": {"path": folder}, "prior": {"kind": "folder", "path": others}}
    few, many = bench.job("few"), bench.job("many", **sections)
    growth, reading = [], []
    for _ in range(bench.rounds):
        fewer, more = (bench.measured("steps.py", job, 20) for job in (few, many))
        # Each against the bare loop beside it: the machine's own pace drops out.
        with_few, with_many = (median(f["ours"]) / median(f["bare"]) for f in (fewer, more))
        growth.append(with_many / with_few)
        reading.append(1e3 * (median(more["batch"]) - median(fewer["batch"])))
    note = f"reading a batch takes {median(reading):.2f} ms longer"
    what = f"step time, {MANY:,} pictures of each kind"
    bench.rows.append(ratio(what, growth, 1.05, at_least=False, note=note))


def two_processes(bench: Bench) -> None:
    """Two processes of one thread: rows a second of each against one process alone."""
    found = bench.measured("ranks.py", bench.job("ranks"), 4 * bench.pairs)
    for what, other, goal in (
        ("two processes, efficiency", "alone", 0.85),
        ("two processes, against the same without a sum", "both", None),
    ):
        pairs = [a / b for a, b in zip(found[other], found["shared"], strict=True)]
        row = ratio(what, pairs, goal or 0.0, at_least=True)
        row.goal = goal
        bench.rows.append(row)


def show(bench: Bench, console: Console) -> None:
    """Print the table and what is missed."""
    table = Table(title=f"{bench.size.name}, {machine()}, {date.today()}")
    for column in ("what", "figure", "spread", "goal", "", "note"):
        table.add_column(column)
    for row in bench.rows:
        spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else ""
        goal = "" if row.goal is None else f"{'>=' if row.at_least else '<='} {row.goal:g}"
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        value = "" if row.value is None else f"{row.value:.3g} {row.unit}"
        table.add_row(row.what, value, spread, goal, verdict, row.note)
    console.print(table)
    for row in bench.rows:
        if row.met is False:
            console.print(f"missed: {row.what}: {row.value:.3g} {row.unit}, goal {row.goal:g}")


def machine() -> str:
    """Return the machine's size in words."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores ({platform.machine()}, {kind}), {memory:.0f} GiB"


def main(
    size: Annotated[str, typer.Option(help="small | sd15 | sdxl")] = "small",
    peer_script: Annotated[
        Path | None, typer.Option(help="Folder of diffusers' examples/dreambooth.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=5, help="Pairs of each comparison.")] = 5,
    only: Annotated[str | None, typer.Option(help="Names of measurements, by comma.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder to work in; kept.")] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("bench.json"),
) -> None:
    """Measure, print the table, write JSON."""
    console = Console(width=150)
    folder = work or Path(tempfile.mkdtemp(prefix="dreambooth-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    made = {"small": lambda _: models.builtin(), "sd15": models.sd15, "sdxl": models.sdxl}
    model = made[size](folder)
    bench = Bench(models.SIZES[size], model, folder.absolute(), pairs, peer_script)
    parts = [overhead, drawing, around, many_pictures, memory, precision_rule]
    parts += [first_step, long_run, two_processes] if size == "small" else []
    if peer_script is not None:
        parts += [against_peer, lora, precision]
        parts += [whole_run, lora_sdxl] if size == "small" else []
    if size == "sdxl":  # larger than most machines: against the script alone
        parts = [lora_sdxl] if peer_script is not None else []
    wanted = only.split(",") if only else [part.__name__ for part in parts]
    for part in parts:
        if part.__name__ in wanted:
            console.print(f"measuring {part.__name__} ...")
            part(bench)
            write(bench, out)  # whatever comes next, this much is kept
    show(bench, console)


def write(bench: Bench, out: Path) -> None:
    """Write the rows there are as JSON."""
    rows = [{**asdict(row), "met": row.met} for row in bench.rows]
    values = {
        "size": bench.size.name,
        "machine": machine(),
        "date": str(date.today()),
        "rows": rows,
    }
    out.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
