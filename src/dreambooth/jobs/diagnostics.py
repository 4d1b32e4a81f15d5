"""What is wrong with a job, each fault with its place: file, line, column, source line, hint."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.helpers.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth.component import Location

SHOWN_COLUMNS = 96


@dataclass(frozen=True)
class Diagnostic:
    """One fault. Line and column count from 1 and are None where the fault has no place in a file
    (an override; a file that cannot be read)."""

    file: str
    """The file as the person named it, or the override (`-o train.steps=abc`)."""
    line: int | None
    column: int | None
    message: str
    hint: str = ""
    source_line: str = ""
    at: Location = ()

    def headline(self) -> str:
        """Return `job.yaml:7:3: message; hint`."""
        place = [self.file, *(str(n) for n in (self.line, self.column) if n is not None)]
        hint = f"; {_continued(self.hint)}" if self.hint else ""
        return printable(f"{':'.join(place)}: {self.message.rstrip('.')}{hint}")

    def render(self) -> str:
        """Return the headline and, where there is one, the source line with a caret below."""
        if not self.source_line.strip() or self.column is None:
            return self.headline()
        shown, before = _window(self.source_line, self.column - 1)
        pad = "".join("\t" if c == "\t" else " " * _width(c) for c in before)
        return f"{self.headline()}\n    {printable(shown)}\n    {pad}^"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "at": list(self.at),
            "message": self.message,
            "hint": self.hint,
        }


class JobErrors(JobError):
    """Everything that is wrong with a job at once, in the order of the file."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        found = dict.fromkeys(diagnostics)
        ordered = sorted(found, key=lambda d: (d.line is None, d.line or 0, d.column or 0))
        super().__init__("\n".join(d.headline() for d in ordered))
        self.diagnostics: tuple[Diagnostic, ...] = tuple(ordered)

    def located(self) -> str:
        """Return all faults with their source lines."""
        return "\n".join(d.render() for d in self.diagnostics)


def _continued(hint: str) -> str:
    """Return a hint as the rest of a sentence: a capital goes unless a name begins with it."""
    text = " ".join(hint.split()).removesuffix(".")
    word = text.split(" ")[0]
    return text[0].lower() + text[1:] if word[1:].islower() or word == "A" else text


def _width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _window(line: str, column: int) -> tuple[str, str]:
    """Cut a long line around a column; return what is shown and the part left of the caret."""
    line = line.rstrip()
    if len(line) <= SHOWN_COLUMNS:
        return line, line[:column]
    start = max(0, min(column - SHOWN_COLUMNS // 2, len(line) - SHOWN_COLUMNS))
    head = "..." if start else ""
    shown = line[start : start + SHOWN_COLUMNS]
    tail = "..." if start + SHOWN_COLUMNS < len(line) else ""
    return f"{head}{shown}{tail}", f"{head}{line[start:column]}"
