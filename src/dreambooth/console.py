"""One rich console for stdout and one for stderr; rich itself is loaded when one is used.

rich honours NO_COLOR, TERM=dumb and COLUMNS.
"""

from __future__ import annotations

import sys
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


def print_error(error: UserError) -> None:
    """Print a person's error on stderr: faults of a job with their places, others with a hint."""
    from dreambooth.diagnostics import JobErrors

    if isinstance(error, JobErrors):
        _plain(error.render())
        return
    _labelled("error", "bold red", error.message, error.hint)


def print_warning(message: str, hint: str = "") -> None:
    """Print a warning on stderr."""
    _labelled("warning", "bold yellow", message, hint)


def _labelled(label: str, style: str, message: str, hint: str) -> None:
    from dreambooth.printable import printable
    from dreambooth.redact import redacted

    lines = [f" {message}", *(f"  hint: {line}" for line in hint.splitlines())]
    text = printable(redacted("\n".join(lines)))
    if sys.stderr.isatty():
        from rich.text import Text

        stderr().print(Text.assemble((f"{label}:", style), text), soft_wrap=True)
    else:
        _plain(f"{label}:{text}")


def _plain(text: str) -> None:
    from dreambooth.printable import printable
    from dreambooth.redact import redacted

    # What goes to a file or a pipe is not wrapped, and needs no rich.
    print(printable(redacted(text)), file=sys.stderr, flush=True)
