"""YAML files of other kinds than jobs, typed by a model; faults have file, line and column."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import ValidationError

from dreambooth.component import Section
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import read_document
from dreambooth.jobs.wording import explain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dreambooth.component import Problem
    from dreambooth.jobs.document import Document

T = TypeVar("T", bound=Section)


@dataclass(frozen=True)
class Written(Generic[T]):
    """What a file says, and where it says it."""

    value: T
    _document: Document

    def wrong(self, problems: Iterable[Problem]) -> JobErrors:
        """Return the error that tells of problems at their places in the file."""
        return JobErrors(self._document.diagnostic(p.at, p.message, p.hint) for p in problems)


def read_typed(path: Path | str, model: type[T]) -> Written[T]:
    """Read a YAML file typed by `model`; paths in it are relative to its folder.

    Raises `JobErrors` with everything that is wrong.
    """
    document = read_document(path)
    try:
        value = model.model_validate_json(
            json.dumps(document.data), strict=True, context={"base": document.folder}
        )
    except ValidationError as error:
        raise JobErrors(explain(error, document, model)) from None
    return Written(value, document)
