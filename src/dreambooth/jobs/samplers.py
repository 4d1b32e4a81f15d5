"""What pictures are drawn with: prompts of a file, and a sampler with some options replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth.component import Problem
from dreambooth.component.previews import PromptsFile, entry_of
from dreambooth.errors import JobError
from dreambooth.interfaces.data import unknown_placeholders
from dreambooth.jobs.typed import read_typed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dreambooth.component.previews import SamplePrompt
    from dreambooth.interfaces import Sampler
    from dreambooth.job import Job


def with_sampler_options(sampler: Sampler, **options: Any) -> Sampler:
    """Return the sampler with the given options replaced; `JobError` where it has none such."""
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in type(sampler).model_fields]
    if unknown:
        raise JobError(
            f'sampler "{sampler.kind}" has no option "{unknown[0]}"',
            f"its options: {', '.join(n for n in type(sampler).model_fields if n != 'kind')}",
        )
    try:
        return type(sampler).model_validate({**sampler.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"sampler option {first['loc'][0]}: {first['msg']}") from error


@dataclass(frozen=True)
class Together:
    """Prompts that are drawn in the same batches: a picture does not depend on its batch."""

    numbers: tuple[int, ...]
    """Their places in the list of prompts."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    sampler: Sampler
    negative: str | None

    def area(self, job: Job) -> float:
        """Return how many times the pixels of a training picture one of these has."""
        (height, width), (own_height, own_width) = self.size, job.data.size
        return height * width / (own_height * own_width)


def drawn_together(job: Job, entries: Sequence[SamplePrompt]) -> list[Together]:
    """Return prompts by what they share: size, negative prompt and options of the sampler.

    Raises `JobError` for an option that the job's sampler does not have.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, entry in enumerate(entries):
        key = (entry.pixels or job.data.size, entry.negative, entry.guidance, entry.steps)
        alike.setdefault(key, []).append(number)
    return [
        Together(
            tuple(numbers),
            size,
            with_sampler_options(job.sampler, **entries[numbers[0]].options()),
            negative,
        )
        for (size, negative, *_), numbers in alike.items()
    ]


def read_prompts(path: Path) -> list[SamplePrompt]:
    """Return the prompts of a YAML file; `JobErrors` with line and column of every fault."""
    found = read_typed(path, PromptsFile)
    entries = [entry_of(value) for value in found.value.prompts]
    faults = [
        Problem(
            ("prompts", number),
            f"nothing fills in {{{name}}}",
            "prompts know {identifier} and {class_noun}",
        )
        for number, entry in enumerate(entries)
        for name in unknown_placeholders(entry.prompt)
    ]
    if faults:
        raise found.wrong(faults)
    return entries


def with_prompts(job: Job) -> Job:
    """Return the job with the prompts of its file, if it names one, written out."""
    path = job.samples.prompts_file
    if path is None:
        return job
    plain = [e.prompt if e.model_fields_set == {"prompt"} else e for e in read_prompts(path)]
    samples = job.samples.model_copy(update={"prompts": plain, "prompts_file": None})
    return job.model_copy(update={"samples": samples})
