"""What goes wrong in a person's terms: a message, a hint, an exit code."""

from __future__ import annotations

EXIT_OK, EXIT_RUN_FAILED, EXIT_BAD_JOB, EXIT_PLUGIN = 0, 1, 2, 3


NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc"),
    *("failed to map segment", "can't start new thread"),
)
"""What the system, torch and the loader of shared libraries say where memory is wanting."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on whatever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    told = isinstance(error, RuntimeError | ImportError | OSError)
    return told and any(words in str(error).lower() for words in NO_MEMORY)


def no_memory(error: BaseException) -> RunError:
    """Return the error to show where nothing more can be said than that memory ran out."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(f"memory ran out: {said}", _memory_hint())


def _memory_hint() -> str:
    """Name the limit that a shell or a cluster's scheduler has set, where there is one."""
    plain = "close other programs, or choose options that need less (dbt run JOB --dry-run)"
    try:
        import resource
    except ImportError:  # Windows
        return plain
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return plain
    return f"raise the limit of {limit >> 20} MiB that is set for this process (ulimit -v)"


class UserError(Exception):
    """Something the person can mend: printed as a message and a hint, never as a traceback.

    `message` says what is wrong and where, `hint` what to do about it.
    """

    exit_code = EXIT_RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def located(self) -> str:
        """Return the whole error as text, where it has places in a file; else nothing."""
        return ""


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

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_RUN_FAILED) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Interrupted(UserError):
    """The run was asked to stop and saved its work; exit code 128 + the signal's number."""

    def __init__(self, message: str, hint: str, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
