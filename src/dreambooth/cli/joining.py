"""Commands of plugins beside our own, and the files they read: looked for where somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dreambooth.hookspecs import FileKind
    from dreambooth.plugins.commands import Joined


class WithPlugins(TyperGroup):
    """`dbt`: our commands, then those of plugins. Ours are run without a look at any plugin."""

    joined: Joined | None = None

    def of_plugins(self) -> Joined:
        """Return the commands of plugins; what does not work is told on stderr, once."""
        if self.joined is None:
            from dreambooth.console import print_warning
            from dreambooth.plugins.commands import join

            self.joined = join(self.commands)
            for problem in self.joined.problems():
                print_warning(problem, "dbt plugins list shows all; uninstall or update it")
        return self.joined

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names for the help, ours first."""
        return [*super().list_commands(ctx), *sorted(self.of_plugins().commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name, ours before any plugin's."""
        ours = super().get_command(ctx, cmd_name)
        return ours if ours is not None else self.of_plugins().commands.get(cmd_name)


def kinds_of_files() -> Mapping[str, FileKind]:
    """Return the kinds of files that plugins' commands read, by marker."""
    from dreambooth.plugins.commands import join

    return join(()).files


def kind_of(path: Path) -> FileKind | None:
    """Return what kind of file a path is; None for a job and for what cannot be read.

    Plugins are looked at only where the top level has a key that no job has.
    """
    from dreambooth.job import Job
    from dreambooth.jobs.diagnostics import JobErrors
    from dreambooth.jobs.document import read_document

    try:
        strange = read_document(path).data.keys() - Job.model_fields.keys()
    except JobErrors:  # told again by whoever reads it as a job
        return None
    kinds = kinds_of_files() if strange else {}
    return next((kinds[key] for key in sorted(strange & kinds.keys())), None)
