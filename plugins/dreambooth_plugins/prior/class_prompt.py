"""The class prompt: its default, and what it may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dreambooth import Problem
from dreambooth.interfaces.data import unknown_placeholders
from dreambooth_plugins.data.judging import names_subject

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth import Job


ClassPrompt = Annotated[str, Field(min_length=1)]
CLASS_PROMPT = "a photo of a {class_noun}"


def class_prompt_problems(prompt: str, job: Job) -> Iterable[Problem]:
    """Report a class prompt that carries the identifier, or braces that nothing fills in."""
    if names_subject(job.subject.fill(prompt), job.subject):
        yield Problem(
            ("prior", "prompt"),
            "the class prompt names the identifier",
            'class images keep the class as it was: use a prompt such as "a photo of a '
            '{class_noun}"',
        )
    for name in unknown_placeholders(prompt):
        yield Problem(
            ("prior", "prompt"),
            f"nothing fills in {{{name}}}",
            "write {class_noun} for the noun",
        )
