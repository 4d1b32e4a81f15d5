"""Jobs made in Python: their faults in the words of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.helpers.text import dotted
from dreambooth.job import Job
from dreambooth.jobs.diagnostics import Diagnostic, JobErrors
from dreambooth.jobs.document import Document
from dreambooth.jobs.wording import explain

if TYPE_CHECKING:
    from pydantic import ValidationError

    from dreambooth.component import Location

__all__ = ["Job"]


class Arguments(Document):
    """The arguments of `Job(...)`, in place of a file."""

    def diagnostic(
        self, at: Location, message: str, hint: str = "", *, on_key: bool = False
    ) -> Diagnostic:
        """Return a fault at an argument: `Job(train.steps): message`."""
        return Diagnostic(f"Job({dotted(at)})", None, None, message, hint, at=at)


def explained(error: ValidationError, data: dict[str, Any]) -> JobErrors:
    """Return everything that is wrong with the arguments of `Job(...)`, in plain words."""
    return JobErrors(explain(error, Arguments("Job", data), Job))


Job.explained_by = staticmethod(explained)
