"""The command line: `dbt`, `dreambooth` and `python -m dreambooth`.

One short module a command. They import what is heavy inside the command, so that `--help` and
`validate` answer at once.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dreambooth.cli import plugins
from dreambooth.cli.export import export
from dreambooth.cli.identifier import identifier
from dreambooth.cli.init import init
from dreambooth.cli.joining import WithPlugins
from dreambooth.cli.run import run
from dreambooth.cli.sample import sample
from dreambooth.cli.schema import schema
from dreambooth.cli.validate import validate
from dreambooth.errors import (
    EXIT_OK,
    EXIT_RUN_FAILED,
    PluginError,
    UserError,
    is_out_of_memory,
    no_memory,
)
from dreambooth.process import guard_streams, stdout_failure

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import FrameType

EXIT_INTERRUPTED = 130
COLLECT_AFTER = (50_000, 20, 20)
"""Objects, and young and middle collections, between two runs of the garbage collector. At
Python's own 700 it goes again and again through the libraries while they are imported: a tenth of
the time to the first step."""

PATIENCE = 5.0
"""Seconds that threads may go on once everything is done."""

# Plain help text: rich's takes longer to load than the whole of `--help` may.
app = typer.Typer(
    cls=WithPlugins,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, validate, identifier, init, sample, export, schema):
    app.command(command.__name__)(command)
app.add_typer(plugins.app, name="plugins")
OWN_COMMANDS = (*(str(info.name) for info in app.registered_commands), "plugins")
"""Names that no plugin's command may have."""


def _version(wanted: bool) -> None:
    if wanted:
        from dreambooth import __version__

        typer.echo(f"dreambooth-trainer {__version__}")
        raise typer.Exit


def _trace(wanted: bool) -> None:
    if wanted:
        from dreambooth.plugins.found import TRACE
        from dreambooth.plugins.tracing import trace_calls

        os.environ[TRACE] = "1"
        trace_calls()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            callback=_trace,
            is_eager=True,
            help="Say on stderr which plugin is asked what, its answers, and the time.",
        ),
    ] = False,
) -> None:
    """Teach a Stable Diffusion model your subject from 3-5 pictures.

    Begin with `dbt init my-dog`, then `dbt run my-dog/job.yaml`.
    """


def main() -> NoReturn:
    """Run the command line and exit: 0 ok, 1 run failed, 2 bad job or usage, 3 plugin failure."""
    before = threading.enumerate()
    gc.set_threshold(*COLLECT_AFTER)
    guard_streams()
    code = _main()
    sys.stdout.flush()
    if code == EXIT_OK and (error := stdout_failure()):
        if error.errno != errno.EPIPE:  # whoever read us has gone (`| head`): no need to say so
            print(f"error: stdout: {error.strerror}", file=sys.stderr)
        code = EXIT_RUN_FAILED
    leave(code, before)


def _main() -> int:
    # Not standalone: typer would turn an interrupt into a code of its own.
    try:
        result = app(prog_name=_program(), standalone_mode=False)
    except UserError as error:
        return _told(error)
    except SystemExit as error:
        if (code := _of_a_plugin(error)) is None:
            raise
        return code
    except (KeyboardInterrupt, typer.Abort):
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        code = _of_a_plugin(error)
        return _of_no_plugin(error) if code is None else code
    if result == EXIT_INTERRUPTED:  # typer's own way to say so
        print("\ninterrupted", file=sys.stderr)
    return result if isinstance(result, int) else EXIT_OK


def _told(error: UserError) -> int:
    from dreambooth.console import print_error

    if isinstance(error, PluginError):
        from dreambooth.plugins.found import trace

        trace("".join(traceback.format_exception(error)))
    print_error(error)
    return error.exit_code


def _of_a_plugin(error: BaseException) -> int | None:
    """Tell what a plugin raised where no run was there to tell it; None for anything else."""
    from dreambooth.plugins.faults import plugin_fault

    fault = plugin_fault(error)
    if fault is None:
        return None
    fault.hint += "; dbt --trace prints the traceback"
    fault.__cause__ = error
    return _told(fault)


def _of_no_plugin(error: Exception) -> int:
    """Tell too little memory and files the system refuses; the rest is no person's mistake."""
    if is_out_of_memory(error):
        return _told(no_memory(error))
    if not isinstance(error, OSError) or error.filename is None:
        return _unexpected(error)
    return _told(
        UserError(
            f"{error.filename}: {error.strerror}",
            "check that the path is right, writable, and has room",
        )
    )


def _unexpected(error: Exception) -> int:
    if callable(show := getattr(error, "show", None)) and hasattr(error, "exit_code"):
        show()  # a usage error of click, which typer brings in a module of its own making
        from dreambooth.cli.usage import hint_for

        if hint := hint_for(error):
            print(f"  hint: {hint}", file=sys.stderr)
        return int(error.exit_code)
    from dreambooth import __version__
    from dreambooth.helpers.text import printable, redacted

    told = printable(redacted("".join(traceback.format_exception(error))))
    print(told, end="", file=sys.stderr)
    print(
        f"error: this is a fault of dreambooth-trainer {__version__} or of a plugin, not yours: "
        "please report it with the lines above and the job file",
        file=sys.stderr,
    )
    return EXIT_RUN_FAILED


def _program() -> str:
    name = os.path.basename(sys.argv[0]).removesuffix(".exe")
    return "python -m dreambooth" if name == "__main__.py" else name


def leave(code: int, before: Collection[threading.Thread]) -> NoReturn:
    """End the program; a thread that was not there `before` is waited for a moment, then told."""
    left = [t for t in threading.enumerate() if not t.daemon and t not in before]
    if left:
        threading.Thread(target=_end, args=(code, left), name="leaving", daemon=True).start()
    raise SystemExit(code)


def _end(code: int, left: Collection[threading.Thread]) -> None:
    threading.main_thread().join()  # from here on Python waits for the others, for ever
    deadline = time.monotonic() + PATIENCE
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    still = [thread for thread in left if thread.is_alive()]
    if not still:
        return
    from dreambooth.console import print_warning

    frames = sys._current_frames()
    for thread in still:
        told = describe_thread(thread, frames.get(thread.ident or 0))
        print_warning(f"{told} is still running {PATIENCE:g} s after the end: leaving without it")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def describe_thread(thread: threading.Thread, frame: FrameType | None) -> str:
    """Return `thread "upload" of plugin "mine" (my-pkg 0.1.0), my_pkg/upload.py:12`."""
    from dreambooth.plugins.faults import owner_of

    stack: list[FrameType] = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    for one in reversed(stack):  # outermost first: what the thread was started for
        owner = owner_of(one.f_globals.get("__name__", ""))
        if owner is not None:
            plugin, where = owner, f"{one.f_code.co_filename}:{one.f_code.co_firstlineno}"
            return f'thread "{thread.name}" of {plugin} ({where})'
    return f'thread "{thread.name}"'
