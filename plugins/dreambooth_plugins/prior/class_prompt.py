"""The class prompt: its default, and what it may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dreambooth import Problem
from dreambooth.interfaces.data import unknown_placeholders

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth import Job


ClassPrompt = Annotated[str, Field(min_length=1)]
CLASS_PROMPT = "a photo of a {class_noun}"


def class_prompt_problems(prompt: str, job: Job) -> Iterable[Problem]:
    """Report a class prompt that carries the identifier, or braces that nothing fills in."""
    if "{identifier}" in prompt or job.subject.identifier in prompt.split():
        yield Problem(
            ("prior", "prompt"),
            "the class prompt names the identifier",
            'class images keep the class as it was: use a prompt such as "a photo of a '
            '{class_noun}"',
        )
    yield from unknown_in_prompt(prompt)


def unknown_in_prompt(prompt: str) -> Iterable[Problem]:
    """Report what a class prompt has in braces that nothing fills in."""
    for name in unknown_placeholders(prompt):
        if name != "identifier":
            yield Problem(
                ("prior", "prompt"),
                f"nothing fills in {{{name}}}",
                "write {class_noun} for the noun",
            )
