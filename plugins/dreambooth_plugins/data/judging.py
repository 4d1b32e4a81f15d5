"""What captions say, or leave out, about the subject."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dreambooth.interfaces import unknown_placeholders
from dreambooth_plugins.data.captions import shorten
from dreambooth_plugins.data.file_types import as_compared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dreambooth.interfaces import Subject


def names_subject(prompt: str, subject: Subject) -> bool:
    """Say whether a filled prompt holds the identifier as a word of its own."""
    word = re.escape(as_compared(subject.identifier).casefold())
    return re.search(rf"(?<!\w){word}(?!\w)", as_compared(prompt).casefold()) is not None


def judge(captions: Mapping[str, str], images: list[str], subject: Subject) -> list[str]:
    """Return warnings about what captions say, or leave out."""
    messages: list[str] = []
    without = [i for i in images if i not in captions]
    if captions and without:
        messages.append(
            f"{len(without)} of {len(images)} images have no caption and train with data.prompt: "
            + shorten(without)
        )
    silent = [i for i, text in captions.items() if not names_subject(subject.fill(text), subject)]
    if silent:
        messages.append(
            f"{len(silent)} of {len(captions)} captions do not name {subject.identifier!r}, so the "
            f"identifier learns nothing from them: {shorten(silent)}"
        )
    odd = [i for i, text in captions.items() if unknown_placeholders(text)]
    if odd:
        messages.append(
            "captions with a {placeholder} that nothing fills in (only {identifier} and "
            f"{{class_noun}} are): {shorten(odd)}"
        )
    return messages
