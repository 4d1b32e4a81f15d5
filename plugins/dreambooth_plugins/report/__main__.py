"""`python -m dreambooth_plugins.report RUN...`."""

from __future__ import annotations

import sys

import typer

from dreambooth.console import print_error
from dreambooth.errors import EXIT_RUN_FAILED, UserError
from dreambooth_plugins.report.command import report


def main() -> int:
    """Run the command as a program of its own and return its exit code."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(report)
    try:
        app(prog_name="python -m dreambooth_plugins.report", standalone_mode=False)
    except UserError as error:
        print_error(error)
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        hint = "check that the path is right, writable, and has room"
        print_error(UserError(f"{error.filename}: {error.strerror}", hint))
        return EXIT_RUN_FAILED
    except Exception as error:
        if not callable(show := getattr(error, "show", None)):
            raise
        show()  # a usage error of click, which typer brings in a module of its own making
        return int(getattr(error, "exit_code", 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
