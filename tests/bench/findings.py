"""Whether findings say what is true: runs spoilt on purpose, and good ones, with what was said.

`make findings WORK=folder [DREAMBENCH=folder]`: trains the embedded base on six drawn subjects (and
two photographed ones) in every way below, keeps what was measured in `WORK/cells`, and prints which
rule spoke where. The same command goes on where it was cut; rules are asked anew each time, so that
another threshold needs no other run; without `WORK/cells` the pictures that lie there are measured
anew.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image, ImageOps

import dreambooth
from dreambooth.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dreambooth import Job
    from dreambooth.interfaces import Evaluation, RunRecord, Score

DRAWN = Path(__file__).parents[1] / "data" / "subjects"
EXAMPLES = Path(dreambooth.__file__).parent / "cli" / "examples"
SUBJECT = "a photo of a {identifier} {class_noun}"
PROMPTS = [f"{SUBJECT} on a teal background", f"{SUBJECT} on a purple background"]
CLASS = "a photo of a {class_noun}"


@dataclass(frozen=True)
class Subject:
    """A subject: which class, where its pictures lie, and what it serves for."""

    noun: str
    folder: Path
    group: str
    """`set` (thresholds were chosen on it), `drawn` or `photographed` (judged by them)."""

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return self.noun if self.group != "photographed" else f"{self.noun}-photographs"


@dataclass(frozen=True)
class Way:
    """How a run is made."""

    name: str
    says: tuple[str, ...]
    """The findings that have to speak; empty where none of the bad ones may."""
    changes: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = (*PROMPTS, CLASS)
    captions: bool = True
    pictures: int = 0
    """How many of the pictures are taken; 0 takes all."""
    twice: bool = False
    """Add each of the first two pictures once more, nearly the same."""
    per_prompt: int = 4
    subjects: tuple[str, ...] = ()
    """Names of the subjects it is tried on; all where empty."""


WAYS = (
    Way("good", ()),
    Way("class-lost", ("class_changed",), {"prior": "none"}),
    # Far too hot, of three pictures with one caption: it draws them whatever it is asked for.
    Way(
        "overcooked",
        ("prompts_ignored",),
        {"optimizer": {"kind": "adamw", "lr": 1e-3}, "prior": "none", "steps": 100},
        captions=False,
        pictures=3,
    ),
    # Far too long on three pictures with one caption, which is what it is asked for.
    Way(
        "too-long",
        ("copying",),
        {"prior": "none", "steps": 250},
        prompts=(SUBJECT, CLASS),
        captions=False,
        pictures=3,
    ),
    # Hardly trained, of two pictures and nearly the same again, with few samples to judge by.
    Way(
        "starved",
        ("learned", "alike_photographs", "too_few"),
        {"optimizer": {"kind": "adamw", "lr": 1e-6}, "steps": 5},
        pictures=2,
        twice=True,
        per_prompt=2,
    ),
    # A base that cannot draw photographs at all.
    Way(
        "small-base",
        ("learned",),
        {"base": "builtin:emoji-64", "steps": 200},
        subjects=("dog-photographs",),
    ),
    Way("good-again", (), {"seed": 1}, subjects=("octopus", "car")),
)


def subjects(dreambench: Path | None) -> list[Subject]:
    """Return the subjects there are."""
    found = [Subject(noun, EXAMPLES / noun, "set") for noun in ("fox", "octopus")]
    found += [Subject("cat", DRAWN / "cat", "set")]
    found += [Subject(noun, DRAWN / noun, "drawn") for noun in ("car", "rocket", "hamburger")]
    if dreambench is not None:
        found += [Subject(noun, dreambench / noun, "photographed") for noun in ("dog", "teapot")]
    return found


def lay_out(subject: Subject, way: Way, folder: Path) -> None:
    """Write the pictures of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = sorted(p for p in subject.folder.iterdir() if p.suffix in {".png", ".jpg"})
    for path in files[: way.pictures or 5]:
        shutil.copy(path, folder)
        caption = path.with_suffix(".txt")
        if way.captions and caption.is_file():
            shutil.copy(caption, folder)
    for path in files[:2] if way.twice else ():
        with Image.open(path) as image:
            plain = ImageOps.exif_transpose(image).convert("RGB")
        cut = max(1, plain.width // 100)
        near = plain.crop((cut, cut, plain.width - cut, plain.height - cut))
        near.resize(plain.size).save(folder / f"near-{path.stem}.jpg", quality=85)


def job_of(subject: Subject, way: Way, work: Path) -> Job:
    """Return the starting job of `dbt init`, for the larger base, with what spoils it."""
    changes = dict(way.changes)
    plenty = 400 if subject.group == "photographed" else 100
    steps, seed = changes.pop("steps", plenty), changes.pop("seed", 0)
    base = changes.pop("base", "builtin:emoji-128")
    data: dict[str, Any] = {
        "name": f"{subject.name}-{way.name}",
        "output": work / "runs",
        "model": {"kind": "stable_diffusion", "source": base},
        "subject": {"identifier": "ohwx", "class_noun": subject.noun},
        "data": {
            "kind": "folder",
            "path": work / "pictures" / f"{subject.name}-{way.name}",
            "prompt": SUBJECT,
            "resolution": int(base[-3:].strip("-")),
        },
        "prior": {"kind": "generated", "prompt": CLASS, "count": 24, "batch_size": 24},
        "sampler": {"kind": "cfg", "guidance_scale": 4.0, "steps": 10},
        "optimizer": {"kind": "adamw", "lr": 5e-4},
        "lr_schedule": {"kind": "cosine"},
        "train": {"steps": steps, "batch_size": 2, "seed": seed, "threads": 1},
        "samples": {"every": steps, "per_prompt": way.per_prompt, "prompts": list(way.prompts)},
        "findings": [],
        "trackers": ["jsonl"],
        "exports": [],
    }
    return dreambooth.Job.model_validate({**data, **changes})


def make(subject: Subject, way: Way, work: Path) -> None:
    """Train and measure one cell, unless it lies there."""
    from dreambooth.api import evaluate, run
    from dreambooth.runs.folder import RunFolder
    from dreambooth_plugins.evaluate.metrics import default_metrics

    name = f"{subject.name}-{way.name}"
    cell = work / "cells" / f"{name}.json"
    if cell.is_file():
        return
    typer.echo(f"{name} ...")
    lay_out(subject, way, work / "pictures" / name)
    job = job_of(subject, way, work)
    folder = RunFolder(job.folder)
    if not folder.read_manifest().get("result"):
        run(job)
        for heavy in (folder.checkpoints, folder.final):
            shutil.rmtree(heavy, ignore_errors=True)
    found = evaluate(folder.path, default_metrics(job, "auto"), all_steps=True)
    write_json(cell, {"evaluations": [e.as_dict() for e in found]})


def read(subject: Subject, way: Way, work: Path) -> RunRecord | None:
    """Return what was measured of a cell as rules see it."""
    from dreambooth.interfaces import Evaluation, RunRecord

    cell = work / "cells" / f"{subject.name}-{way.name}.json"
    if not cell.is_file():
        return None
    data = json.loads(cell.read_text())["evaluations"]
    job = job_of(subject, way, work)
    made = [Evaluation(row["step"], scores(row), [], cell) for row in data]
    folder = work / "pictures" / f"{subject.name}-{way.name}"
    names = sorted(p for p in folder.iterdir() if p.suffix in {".png", ".jpg"})
    crops = [(p.name, ImageOps.fit(Image.open(p).convert("RGB"), job.data.size)) for p in names]
    return RunRecord(job, made, crops)


def scores(row: dict[str, Any]) -> list[Score]:
    """Return the scores of an evaluation that was written as JSON."""
    from dreambooth.interfaces import Score

    found = []
    for metric in row["metrics"]:
        values = {
            i: picture["values"][metric["name"]]
            for i, picture in enumerate(row["pictures"])
            if metric["name"] in picture["values"]
        }
        change = metric["change"] and (metric["change"]["value"], metric["change"]["stderr"])
        found.append(Score(**{**metric, "change": change, "pictures": values}))
    return found


def said(record: RunRecord) -> dict[str, str]:
    """Return what the default rules say of a run: id -> mark."""
    from dreambooth.plugins import registry

    rules: dict[str, Any] = dict(registry().kinds("finding"))
    found = {name: cls().judge(record) for name, cls in rules.items()}
    return {name: findings[0].mark for name, findings in found.items() if findings}


def numbers(evaluation: Evaluation) -> str:
    """Return what was measured, in one line: value, untrained base's, photographs' own."""
    told = []
    for score in evaluation.scores:
        beside = (score.value, score.baseline, score.real)
        error = score.change[1] if score.change else 0.0
        values = "/".join("-" if v is None else f"{v:.2f}" for v in beside)
        told.append(f"{score.name[:9]} {values} ({error:.3f}, {score.n})")
    return "  ".join(told)


def cells(dreambench: Path | None) -> Iterator[tuple[Subject, Way]]:
    """Yield all cells, way by way; photographed subjects, which take longest, last."""
    found = subjects(dreambench)
    for group in ({"set", "drawn"}, {"photographed"}):
        for way in WAYS:
            for subject in found:
                if subject.group in group and (not way.subjects or subject.name in way.subjects):
                    yield subject, way


def table(work: Path, todo: Sequence[tuple[Subject, Way]]) -> None:
    """Print what was said of every run."""
    for subject, way in todo:
        if (record := read(subject, way, work)) is None or record.last is None:
            continue
        marks = said(record)
        bad = {name for name, mark in marks.items() if mark != "good"}
        right = set(way.says) <= bad if way.says else not bad
        typer.echo(
            f"{'ok   ' if right else 'WRONG'} {subject.group:<12} {subject.name:<18} {way.name:<11}"
            f" {', '.join(f'{name}: {mark}' for name, mark in marks.items())}"
        )
        typer.echo(f"      {numbers(record.last)}")


def main(
    work: Path,
    dreambench: Annotated[Path | None, typer.Option(envvar="DREAMBENCH")] = None,
    only: Annotated[str, typer.Option(help="Part of the names of the cells to run.")] = "",
    show: Annotated[bool, typer.Option(help="Run nothing, print the table.")] = False,
) -> None:
    """Run what is missing, then print the table."""
    os.environ.setdefault("DREAMBOOTH_CACHE", str(work / "cache"))
    todo = [(s, w) for s, w in cells(dreambench) if only in f"{s.name}-{w.name}"]
    for subject, way in () if show else todo:
        make(subject, way, work.absolute())
    table(work.absolute(), todo)


if __name__ == "__main__":
    typer.run(main)
