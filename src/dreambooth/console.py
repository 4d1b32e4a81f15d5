"""One rich console for stdout and one for stderr; rich itself is loaded when one is used.

rich honours NO_COLOR, TERM=dumb and COLUMNS.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dreambooth.errors import UserError


@cache
def stdout() -> Console:
    """Return the console of stdout."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def stderr() -> Console:
    """Return the console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def wrapped(text: str, indent: int = 0, width: int | None = None) -> str:
    """Break lines between words to fit the terminal; what continues is indented.

    A word longer than a line, such as a path, stays whole: the terminal breaks it, and whoever
    copies it gets it whole.
    """
    width = width or shutil.get_terminal_size().columns
    return "\n".join(
        part
        for line in text.split("\n")
        for part in textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        or [""]
    )


def say(
    console: Console, text: str, indent: int = 0, *, style: str = "", copied: bool = False
) -> None:
    """Print a text without its control characters; in a terminal its lines break between words.

    `copied`: a command that people copy, which only the terminal may break.
    """
    from dreambooth.helpers.text import printable

    text = printable(text)
    if console.is_terminal and not copied:
        text = wrapped(text, indent, console.width)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def echo(text: str, indent: int = 0) -> None:
    """Print a text on stdout without rich, and without its control characters.

    In a terminal its lines break between words.
    """
    from dreambooth.helpers.text import printable

    text = printable(text)
    print(wrapped(text, indent) if sys.stdout.isatty() else text)


def print_error(error: UserError) -> None:
    """Print a person's error on stderr: faults of a job with their places, others with a hint."""
    if text := error.located():
        if sys.stderr.isatty():  # source lines and carets below them stay as they are
            text = "\n".join(x if x[:1] == " " else wrapped(x, 2) for x in text.split("\n"))
        _plain(text)
        return
    _labelled("error", "bold red", error.message, error.hint)


def print_warning(message: str, hint: str = "") -> None:
    """Print a warning on stderr."""
    _labelled("warning", "bold yellow", message, hint)


def _labelled(label: str, style: str, message: str, hint: str) -> None:
    from dreambooth.helpers.text import printable, redacted

    lines = [f" {message}", *(f"  hint: {line}" for line in hint.splitlines())]
    text = printable(redacted("\n".join(lines)))
    if sys.stderr.isatty():
        from rich.text import Text

        console = stderr()
        told = wrapped(f"{label}:{text}", 2, console.width).removeprefix(f"{label}:")
        console.print(Text.assemble((f"{label}:", style), told), soft_wrap=True)
    else:
        _plain(f"{label}:{text}")


def _plain(text: str) -> None:
    from dreambooth.helpers.text import printable, redacted

    # What goes to a file or a pipe is not wrapped, and needs no rich.
    print(printable(redacted(text)), file=sys.stderr, flush=True)
