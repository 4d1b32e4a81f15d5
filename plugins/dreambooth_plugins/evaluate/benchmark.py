"""The evaluation everybody quotes, over a folder of subjects laid out as DreamBench is."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import JobError
from dreambooth.errors import RunError
from dreambooth.files import read_limited

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dreambooth import Job
    from dreambooth.interfaces import Evaluation

LIST = "prompts_and_classes.txt"
MAX_BYTES = 1 << 20
LIVE = frozenset({"cat", "dog"})
"""Classes whose subjects get the prompts for live subjects, as in the dataset."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
COLUMNS = {
    "subject_similarity": "likeness",
    "prompt_alignment": "prompts",
    "prior_preservation": "PRES",
    "diversity": "variety",
}
PAPER = (
    "the paper's, by DINO ViT-S/16, CLIP-I and CLIP-T over all 30 subjects (not comparable with "
    "other encoders): photographs 0.774 / 0.885, DreamBooth on SD 0.668 / 0.803 / 0.305"
)


@dataclass(frozen=True)
class Case:
    """One subject of the benchmark."""

    name: str
    class_noun: str
    folder: Path

    @property
    def prompts(self) -> Path:
        """The file of the prompts that suit it."""
        kind = "live" if self.class_noun in LIVE else "object"
        return Path(__file__).parent / "prompts" / f"dreambench-{kind}.yaml"


def cases(root: Path) -> list[Case]:
    """Return the subjects of a folder, sorted; `JobError` where there is none.

    The class is what `prompts_and_classes.txt` says, else the folder's name without its number.
    """
    if not root.is_dir():
        raise JobError(f"there is no folder {root}", "name a folder with one folder a subject")
    known = dict(classes(root / LIST))
    found = [
        Case(path.name, known.get(path.name) or plain(path.name), path)
        for path in sorted(root.iterdir())
        if path.is_dir() and any(p.suffix.lower() in PICTURES for p in path.iterdir())
    ]
    if not found:
        raise JobError(
            f"{root} has no folder with pictures",
            "DreamBench has one folder a subject: dog/00.jpg, dog/01.jpg, ...",
        )
    return found


def classes(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (subject, class) of the dataset's list; nothing where it is not there."""
    try:
        text = read_limited(path, MAX_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        if match := re.fullmatch(r"([a-z_0-9]+),([a-z ]+)", line.strip()):
            if match[1] != "subject_name":
                yield match[1], match[2]


def plain(name: str) -> str:
    """Return `dog` for `dog6`."""
    return re.sub(r"\d+$", "", name).replace("_", " ").strip() or name


def job_for(recipe: Job, case: Case) -> Job:
    """Return the recipe for one subject; `JobError` where its data has no folder."""
    if "path" not in type(recipe.data).model_fields:
        raise JobError(
            f'data kind "{recipe.data.kind}" has no path', "use a job whose data is a folder"
        )
    data = recipe.data.model_copy(update={"path": case.folder.absolute()})
    subject = recipe.subject.model_copy(update={"class_noun": case.class_noun})
    name = f"{recipe.name}-{case.name}"
    return recipe.model_copy(update={"name": name, "data": data, "subject": subject})


def walk(
    recipe: Job, root: Path, encoder: str, lpips: Path | None, images: int, reporter: Any
) -> list[tuple[Case, Evaluation]]:
    """Train and measure each subject, and return the numbers.

    The same call again goes on: a finished run answers at once, one that was cut short resumes,
    and pictures that were drawn are taken as they are.
    """
    from dreambooth.api import evaluate, run
    from dreambooth_plugins.evaluate.metrics import default_metrics

    todo = cases(root)
    jobs = [job_for(recipe, case) for case in todo]
    metrics = default_metrics(recipe, encoder, lpips)
    done: list[tuple[Case, Evaluation]] = []
    for number, (case, job) in enumerate(zip(todo, jobs, strict=True), start=1):
        reporter.info(f"subject {number} of {len(todo)}: {case.name}, a {case.class_noun}")
        result = run(job, reporter=reporter)
        found = evaluate(
            result.folder,
            metrics,
            prompts=case.prompts,
            images_per_prompt=images,
            reporter=reporter,
        )
        if not found:
            raise RunError(f"{result.folder} was not measured")
        done.append((case, found[0]))
    return done


def rows(done: Sequence[tuple[Case, Evaluation]]) -> list[dict[str, Any]]:
    """Return a row a subject and their mean: name, and value and photographs of each metric."""
    table: list[dict[str, Any]] = []
    for case, evaluation in done:
        row: dict[str, Any] = {"subject": case.name, "class": case.class_noun}
        for name in COLUMNS:
            score = evaluation.score(name)
            row[name] = None if score is None else score.value
        likeness = evaluation.score("subject_similarity")
        row["photographs"] = None if likeness is None else likeness.real
        row["untrained"] = None if likeness is None else likeness.baseline
        table.append(row)
    mean: dict[str, Any] = {"subject": "mean", "class": ""}
    for name in (*COLUMNS, "photographs", "untrained"):
        values = [row[name] for row in table if row[name] is not None]
        mean[name] = statistics.fmean(values) if values else None
    return [*table, mean]


def lines(done: Sequence[tuple[Case, Evaluation]]) -> list[str]:
    """Return the table for people, within 80 columns."""
    heads = "".join(f"{head:>10}" for head in COLUMNS.values())
    told = [f"{'':<18}{heads}{'photos':>10}{'untrained':>10}"]
    for row in rows(done):
        numbers = (row[name] for name in (*COLUMNS, "photographs", "untrained"))
        cells = "".join(f"{'-' if v is None else format(v, '.3f'):>10}" for v in numbers)
        told.append(f"{row['subject'][:17]:<18}{cells}")
    encoders = {s.encoder for _, evaluation in done for s in evaluation.scores if s.encoder}
    n = sum(len(evaluation.drawings) for _, evaluation in done)
    return [*told, "", f"{n} pictures, through {', '.join(sorted(encoders))}", PAPER]
