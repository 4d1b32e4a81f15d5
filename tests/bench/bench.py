"""How fast it is, against the arithmetic and against diffusers' script: `make bench SIZE=small`.

Every figure is a ratio of times from one call, taken in turn, as the median of pairs. Nothing here
passes or fails a test: goals that are missed are said.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import models
import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


@dataclass
class Row:
    """One measured figure."""

    what: str
    value: float | None
    unit: str
    goal: float | None = None
    at_least: bool = False
    """The goal is a lower bound; else an upper one."""
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Say whether the goal is met; None without a goal or a figure."""
        if self.goal is None or self.value is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def ratio(what: str, pairs: list[float], goal: float, *, at_least: bool, note: str = "") -> Row:
    """Return the median of ratios as a row."""
    return Row(what, median(pairs), "x", goal, at_least, (min(pairs), max(pairs)), note)


@dataclass
class Bench:
    """One call of the bench."""

    size: models.Size
    model: Path
    work: Path
    pairs: int
    scripts: Path | None
    rows: list[Row] = field(default_factory=list)

    def job(self, name: str, **sections: Any) -> Path:
        """Write a job file and return it."""
        path = self.work / f"{name}.json"
        values = models.job_values(self.size, self.model, self.work, name, **sections)
        path.write_text(models.as_json(values))
        return path

    def call(self, *command: object, cache: str = "cache", **env: str) -> tuple[str, float]:
        """Run a command; return what it printed last and its wall-clock seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "DREAMBOOTH_CACHE": str(self.work / cache), "NO_COLOR": "1", **env},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        lines = done.stdout.splitlines()
        return lines[-1] if lines else "", time.monotonic() - began

    def measured(self, *command: object) -> dict[str, Any]:
        """Run one of the measuring scripts and return its JSON."""
        said, _ = self.call(HERE / command[0], *command[1:])
        result: dict[str, Any] = json.loads(said)
        return result

    def peer(self, name: str, *options: str, script: str = "train_dreambooth.py") -> dict[str, Any]:
        """Run diffusers' script on the same pictures and return its marks."""
        assert self.scripts is not None
        record, out = self.work / f"peer-{name}.json", self.work / f"peer-{name}"
        size = self.size
        arguments = [
            f"--pretrained_model_name_or_path={self.model}",
            f"--instance_data_dir={models.pictures(self.work, 5, size.resolution)}",
            "--instance_prompt=a photo of ohwx dog",
            "--with_prior_preservation",
            f"--class_data_dir={models.pictures(self.work, size.class_images, size.resolution)}",
            "--class_prompt=a photo of a dog",
            f"--num_class_images={size.class_images}",
            f"--output_dir={out}",
            f"--resolution={size.resolution}",
            f"--train_batch_size={size.rows}",
            f"--max_train_steps={size.steps}",
            "--learning_rate=1e-6",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            "--checkpointing_steps=100000",
            "--seed=0",
            *options,
        ]
        _, wall = self.call(HERE / "peer.py", record, self.scripts / script, *arguments)
        return {**json.loads(record.read_text()), "wall": wall}


def step_seconds(marks: dict[str, Any], skip: int = 3) -> list[float]:
    """Return the seconds of the peer's steps, without the first ones."""
    steps = marks["steps"]
    return [b - a for a, b in pairwise(steps)][skip - 1 :]


def overhead(bench: Bench) -> None:
    """A step of ours against a bare loop."""
    found = bench.measured("steps.py", bench.job("overhead"), bench.pairs)
    pairs = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    goal = 1.05 if bench.size.name == "sd15" else 1.20
    note = f"bare {median(found['bare']):.3g} s; losses apart {found['losses_apart']:.1e}"
    bench.rows.append(ratio("step against a bare loop", pairs, goal, at_least=False, note=note))
    bench.rows.append(Row("reading a batch", 1e3 * median(found["batch"]), "ms"))


def against_peer(bench: Bench) -> None:
    """Steps a second and memory against diffusers' script, with and without the text encoder."""
    small = bench.size.name == "small"
    cases = {
        "frozen": (["unet"], [], 1.35 if small else 1.75),
        "trained": (["unet", "text_encoder"], ["--train_text_encoder"], 1.2 if small else 1.5),
    }
    for name, (parts, options, goal) in cases.items():
        freezing = {"kind": "components", "train": parts}
        job = bench.job(f"peer-{name}", freezing=freezing)
        ratios, theirs, peaks = [], [], []
        for _ in range(max(1, bench.pairs // 5)):
            ours = bench.measured("steps.py", job, 5)
            marks = bench.peer(name, *options)
            theirs.append(median(step_seconds(marks)))
            ratios.append(theirs[-1] / median(ours["ours"]))
            peaks.append(ours["peak_bytes"] / marks["peak_bytes"])
        what = f"steps a second against the script, text encoder {name}"
        note = f"theirs {median(theirs):.3g} s a step"
        bench.rows.append(ratio(what, ratios, goal, at_least=True, note=note))
        what = f"peak memory against the script, text encoder {name}"
        bench.rows.append(ratio(what, peaks, 1.0, at_least=False))


def drawing(bench: Bench) -> None:
    """Class images a second against a plain pipeline."""
    goal = 1.5 if bench.size.name == "small" else 1.0
    found = bench.measured("draw.py", bench.job("draw"), max(2, bench.pairs // 2))
    pairs = [b / a for a, b in zip(found["ours"], found["plain"], strict=True)]
    rate = found["count"] / median(found["ours"])
    note = f"{rate:.2g} pictures a second at {found['steps']} steps, {found['precision']}"
    bench.rows.append(ratio("class images a second", pairs, goal, at_least=True, note=note))


def first_step(bench: Bench) -> None:
    """Seconds from the shell to the first logged step, everything cached."""
    options = {"train": {"steps": 1}, "log": {"every": 1}, "trackers": []}
    bench.call("-m", "dreambooth", "run", bench.job("first", **options))
    seconds = []
    for number in range(3):
        job = bench.job(f"first-{number}", **options)
        seconds.append(until_first_step(bench, job))
    goal = 6.0 if bench.size.name == "small" else None
    row = Row("shell to first step, cached", median(seconds), "s", goal)
    row.spread = (min(seconds), max(seconds))
    bench.rows.append(row)


def until_first_step(bench: Bench, job: Path) -> float:
    """Run a job of one step and return when its first step was shown."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dreambooth", "run", str(job)],
        env={**os.environ, "DREAMBOOTH_CACHE": str(bench.work / "cache"), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seconds = 0.0
    for line in process.stdout:
        if line.startswith("step 1/") and not seconds:
            seconds = time.monotonic() - began
    process.wait()
    return seconds


def whole_run(bench: Bench) -> None:
    """Shell to exported result against the script: 300 steps, 2 + 2 rows, 40 class images."""
    from dataclasses import replace

    longer = replace(bench, size=replace(bench.size, rows=2, steps=300))
    sections = {
        "freezing": {"kind": "components", "train": ["unet", "text_encoder"]},
        "samples": {"every": 100, "per_prompt": 4},
    }
    ratios, walls = [], []
    for number in range(2):
        job = longer.job(f"whole-{number}", **sections)
        _, ours = longer.call("-m", "dreambooth", "run", job, cache=f"cache-whole-{number}")
        marks = longer.peer("whole", "--train_text_encoder")
        drawn = drawing_seconds(longer)
        walls.append(ours)
        ratios.append(ours / (marks["wall"] + drawn))
    note = f"ours {median(walls):.0f} s with {36} pictures; class images drawn in both"
    bench.rows.append(ratio("a whole short run", ratios, 0.65, at_least=False, note=note))


def drawing_seconds(bench: Bench) -> float:
    """Return what the script needs to draw the class images itself: 50 steps, batches of 4."""
    found = bench.measured(
        "draw.py", bench.job("draw-50", sampler={"steps": 50}, prior={"batch_size": 4}), 2
    )
    return median(found["plain"]) * bench.size.class_images / 4


def around(bench: Bench) -> None:
    """What logging and checkpoints cost, and whether step time and memory stay flat."""
    steps = 400 if bench.size.name == "small" else 12
    options = {"train": {"steps": steps}, "checkpoints": {"every": "auto"}, "log": {"every": 10}}
    found = bench.measured("costs.py", bench.job("costs", **options))
    share = (found["around"] - found["samples"]) / found["steps"]
    bench.rows.append(Row("logging and checkpoints", 100 * share, "%", 2.0))
    seconds = found["seconds"]
    quarter = len(seconds) // 4
    growth = median(seconds[-quarter:]) / median(seconds[quarter : 2 * quarter])
    bench.rows.append(Row("step time, last against second quarter", growth, "x", 1.05))
    if len(found["memory"]) > 2:
        (_, early), *_, (_, late) = found["memory"][1:]
        bench.rows.append(Row("memory, end against early", late / early, "x", 1.02))


def many_pictures(bench: Bench) -> None:
    """Step time with 5 and with 2,000 instance images."""
    if bench.size.name != "small":
        return
    data = {"path": models.pictures(bench.work, 2000, bench.size.resolution)}
    few = bench.measured("steps.py", bench.job("few"), bench.pairs)
    many = bench.measured("steps.py", bench.job("many", data=data), bench.pairs)
    growth = median(many["ours"]) / median(few["ours"])
    bench.rows.append(Row("step time, 2,000 pictures against 5", growth, "x", 1.05))


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
    size: Annotated[str, typer.Option(help="small | sd15")] = "small",
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
    model = models.builtin() if size == "small" else models.sd15(folder)
    bench = Bench(models.SIZES[size], model, folder.absolute(), pairs, peer_script)
    parts = [overhead, drawing, around, many_pictures]
    parts += [first_step] if size == "small" else []
    if peer_script is not None:
        parts += [against_peer, *([whole_run] if size == "small" else [])]
    wanted = only.split(",") if only else [part.__name__ for part in parts]
    for part in parts:
        if part.__name__ in wanted:
            console.print(f"measuring {part.__name__} ...")
            part(bench)
    show(bench, console)
    rows = [{**asdict(row), "met": row.met} for row in bench.rows]
    values = {"size": size, "machine": machine(), "date": str(date.today()), "rows": rows}
    out.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
