"""The model card beside an export: what it is, how to use it, how it was made.

A README.md with the front matter that model hubs read. It holds no path of this machine, no time
and no secret, so that equal runs give equal cards.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreambooth.files import MAX_JSON, read_limited, write_text, write_with
from dreambooth.helpers.naming import base_name, hub_id, last_part, versions
from dreambooth.helpers.text import code_span, flat, in_markdown, redacted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dreambooth.component import Component
    from dreambooth.interfaces import Check, Exporter, Item, ModelInfo
    from dreambooth.job import Job
    from dreambooth.runs.folder import RunFolder

MAKER = "dreambooth-trainer"
CAPTIONS = 3
"""How many of the captions a card shows."""
CARD, PICTURE = "README.md", "samples.png"
CARD_FILES = (CARD, PICTURE)
"""Files of a card: a person may change them, and the export stays whole."""


@dataclass(frozen=True)
class Export:
    """One finished export."""

    kind: str
    folder: Path
    check: Check
    exporter: Exporter


@dataclass(frozen=True)
class Facts:
    """What a card says of a run besides its job."""

    steps: int
    images: int
    captions: Mapping[str, int] = field(default_factory=dict)
    """The prompts that pictures were trained with -> how many pictures."""
    precision: str = ""
    """What forward passes were computed in."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """The last logged numbers."""
    kept: str = ""
    """Which step was kept as the best, and why."""
    stopped: str = ""
    """Why the run ended before its last step."""
    findings: Sequence[str] = ()
    """How the run went, in sentences."""


def captions_of(job: Job, items: Sequence[Item]) -> dict[str, int]:
    """Return the prompts that pictures are trained with, and how many pictures each has."""
    counts = Counter(job.data.item_prompt(item, job.subject) for item in items)
    return dict(sorted(counts.items()))


def write_card(job: Job, info: ModelInfo, folder: RunFolder, export: Export, facts: Facts) -> None:
    """Write the card into the export's folder, with a copy of the newest sample pictures."""
    prompts: list[str] = []
    newest = newest_samples(folder.samples)
    if newest is not None:
        copy_picture(newest / "grid.png", export.folder / PICTURE)
        prompts = prompts_of(newest)
    files = sorted(
        path.relative_to(export.folder).as_posix()
        for path in export.folder.rglob("*")
        if path.is_file() and path.name not in CARD_FILES
    )
    text = card(job, info, export, facts, prompts, files)
    write_text(export.folder / CARD, redacted(text))


def newest_samples(samples: Path) -> Path | None:
    """Return the folder of the last pictures that were drawn while training; None without any."""
    steps = sorted(path for path in samples.glob("step-*") if (path / "grid.png").is_file())
    return steps[-1] if steps else None


def copy_picture(source: Path, dest: Path) -> None:
    """Copy a picture's pixels alone: what is published says no more than the card."""
    with Image.open(source) as picture:
        picture.load()
        write_with(dest, lambda beside: picture.save(beside, format="PNG"))


def prompts_of(folder: Path) -> list[str]:
    """Return the distinct prompts of a folder of samples, none where its record is damaged."""
    try:
        record = json.loads(read_limited(folder / "prompts.json", MAX_JSON))
        return list(dict.fromkeys(str(picture["prompt"]) for picture in record))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def card(
    job: Job,
    info: ModelInfo,
    export: Export,
    facts: Facts,
    prompts: Sequence[str],
    files: Sequence[str],
) -> str:
    """Return the card's text; `prompts` belong to the pictures beside it."""
    subject = f"{job.subject.identifier} {job.subject.class_noun}"
    lines = [*_front_matter(job, export, prompts), f"# {job.name}", ""]
    lines += [
        f"Draws {code_span(subject)}: {code_span(base_name(job))} taught a subject with "
        f"DreamBooth, as {code_span(export.kind)}.",
        "",
    ]
    if prompts:
        lines += [f"![samples]({PICTURE})", "", *(f"- {code_span(p)}" for p in prompts), ""]
    if usage := export.exporter.usage(job, info, files):
        lines += ["## How to use it", "", usage.strip(), ""]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in _settings(job, facts)]
    if facts.scalars:
        lines += ["", "## Numbers at the end", "", "| | |", "|---|---|"]
        lines += [
            f"| {_cell(in_markdown(name))} | {value:.4g} |"
            for name, value in sorted(facts.scalars.items())
        ]
    if facts.findings:
        lines += ["", "## How it went", ""]
        lines += [f"- {in_markdown(sentence)}" for sentence in facts.findings]
    lines += ["", f"Made with dreambooth-trainer {versions(MAKER)[MAKER]}."]
    if export.check.message:
        lines += [f"The files were read back and compared: {in_markdown(export.check.message)}."]
    lines += ["What the licence of the base model says holds for this one too.", ""]
    return "\n".join(lines)


def _front_matter(job: Job, export: Export, prompts: Sequence[str]) -> Iterator[str]:
    tags = ["text-to-image", "stable-diffusion", "diffusers", "dreambooth"]
    tags += sorted(job.freezing.adapter_methods())
    tags += ["textual_inversion"] if job.freezing.learns_word() else []
    yield "---"
    if base := hub_id(job):
        yield f"base_model: {_text(base)}"
    yield "library_name: diffusers"
    yield "pipeline_tag: text-to-image"
    yield f"instance_prompt: {_text(_instance_prompt(job))}"
    yield "tags:"
    yield from (f"- {tag}" for tag in dict.fromkeys([*tags, export.kind.replace("_", "-")]))
    if prompts:
        yield "widget:"
        yield f"- text: {_text(prompts[0])}"
        yield f"  output: {{url: {PICTURE}}}"
    yield "---"
    yield ""


def _instance_prompt(job: Job) -> str:
    return job.subject.fill(job.data.prompt)


def _settings(job: Job, facts: Facts) -> Iterator[tuple[str, str]]:
    height, width = job.data.size
    train = job.train
    yield "base model", code_span(base_name(job))
    yield "identifier", code_span(job.subject.identifier)
    yield "class noun", code_span(job.subject.class_noun)
    yield "pictures", f"{facts.images}, trained at {width} x {height}"
    yield from _prompts(job, facts.captions)
    if prior := _class_prompts(job):
        yield "class prompt", ", ".join(code_span(p) for p in prior)
    yield (
        "steps",
        f"{facts.steps}" + (f" (stopped: {in_markdown(facts.stopped)})" if facts.stopped else ""),
    )
    if facts.kept:
        yield "kept", in_markdown(facts.kept)
    yield "rows a step", f"{train.batch_size * train.accumulation}"
    yield "seed", f"{train.seed}"
    if facts.precision:
        yield "precision", facts.precision
    rate = getattr(job.optimizer, "lr", None)
    if rate is not None:
        yield "learning rate", f"{rate:g}"
    for name in ("freezing", "prior", "loss", "scheduler", "optimizer", "lr_schedule", "sampler"):
        yield name.replace("_", " "), _component(getattr(job, name))


def _prompts(job: Job, captions: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Tell the one prompt of all pictures, or some of their captions and how many there are."""
    if len(captions) < 2:
        yield "prompt", code_span(next(iter(captions), _instance_prompt(job)))
        return
    shown = sorted(captions, key=lambda text: (-captions[text], text))[:CAPTIONS]
    more = f" and {len(captions) - len(shown)} more" if len(captions) > len(shown) else ""
    counted = (
        f"{code_span(t)}" + (f" ({captions[t]} pictures)" * (captions[t] > 1)) for t in shown
    )
    yield "captions", f"{len(captions)} different ones: {', '.join(counted)}{more}"


def _class_prompts(job: Job) -> list[str]:
    prompt = getattr(job.prior, "prompt", None)
    return [job.subject.fill(prompt)] if isinstance(prompt, str) else []


def _component(part: Component) -> str:
    """Write a component as its kind and what differs from the defaults, paths cut short."""
    options = part.model_dump(mode="json", exclude_defaults=True)
    options.pop("kind", None)
    text = ", ".join(f"{n}: {_plain(without_paths(v))}" for n, v in options.items())
    kind: Any = getattr(part, "kind", "")
    return code_span(f"{kind} {{{text}}}" if text else str(kind))


def without_paths(value: Any) -> Any:
    """Return plain data in which every absolute path is cut to its last part."""
    if isinstance(value, str):
        return last_part(value)
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    return [without_paths(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(text: str) -> str:
    """Write a text for YAML: a JSON string is one."""
    return json.dumps(flat(text), ensure_ascii=False)
