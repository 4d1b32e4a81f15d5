"""Job files in and out: YAML, overrides, checks, and the resolved job written back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth.component import Problem
from dreambooth.errors import UserError
from dreambooth.job import Job
from dreambooth.jobs import checks, identifiers
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import read_document
from dreambooth.jobs.overrides import overridden
from dreambooth.jobs.samplers import with_prompts
from dreambooth.jobs.scalars import written
from dreambooth.jobs.wording import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dreambooth.jobs.document import Document


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read and check a job file, `overrides` such as `train.steps=200` on top.

    Types, ranges and names are checked here; what needs the model's files is `checks.preflight`.
    The prompts of a `samples.prompts_file` are written out in it.
    Raises `JobErrors` with everything found.
    """
    return _read(path, overrides)[0]


def check_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Read a job file and check all of it, the model's JSON files and the data included.

    The job that is returned has written out what it says `auto` for.
    """
    job, document = _read(path, overrides)
    problems: list[Problem] = []
    try:
        job = identifiers.by_model(job)
        job = identifiers.with_identifier(job)
    except UserError as error:
        message = error.message.removeprefix("subject.identifier: ")
        problems = [Problem(("subject", "identifier"), message, error.hint)]
    if problems := checks.preflight(job) or problems:
        raise JobErrors(document.diagnostic(p.at, p.message, p.hint) for p in problems)
    return job


def _read(path: str | Path, overrides: Sequence[str]) -> tuple[Job, Document]:
    document = read_document(path)
    if overrides:
        document = overridden(document, overrides, Job)
    try:
        # JSON is the strict mode in which a list may fill a tuple and a text a path.
        job = Job.model_validate_json(
            json.dumps(document.data), strict=True, context={"base": document.folder}
        )
    except ValidationError as error:
        raise JobErrors(explain(error, document, Job)) from None
    return with_prompts(job), document


def dump_job(job: Job, schema: str | None = None) -> str:
    """Return the resolved job as YAML, defaults written out; loading it gives an equal job.

    `schema` is the file or address editors check the job against.
    """
    head = f"# yaml-language-server: $schema={schema}\n" if schema else ""
    return head + "".join(f"{line}\n" for line in _mapping(job.resolved()))


def _mapping(data: dict[str, Any]) -> Iterable[str]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield f"{written(key)}:"
            yield from (f"  {line}" for line in _mapping(value))
        elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
            yield f"{written(key)}:"
            yield from (f"  - {_flow(item)}" for item in value)
        else:
            yield f"{written(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(k)}: {_flow(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return written(value)
