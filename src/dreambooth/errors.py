"""What goes wrong in a person's terms: a message, a hint, an exit code."""

from __future__ import annotations

EXIT_OK, EXIT_RUN_FAILED, EXIT_BAD_JOB, EXIT_PLUGIN = 0, 1, 2, 3


class UserError(Exception):
    """Something the person can mend: printed as a message and a hint, never as a traceback.

    `message` says what is wrong and where, `hint` what to do about it.
    """

    exit_code = EXIT_RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RunError(UserError):
    """The run could not go on (exit code 1)."""


class JobError(UserError):
    """The job file or the command line is wrong (exit code 2)."""

    exit_code = EXIT_BAD_JOB


class PluginError(UserError):
    """An installed plugin broke its contract or could not be loaded (exit code 3)."""

    exit_code = EXIT_PLUGIN


class ToldElsewhere(UserError):
    """The main process tells what is wrong; this one leaves with the same code, and silently."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Interrupted(UserError):
    """The run was asked to stop and saved its work; exit code 128 + the signal's number."""

    def __init__(self, message: str, hint: str, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
