"""Commands of plugins beside our own: looked for where the help or an unknown name asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

if TYPE_CHECKING:
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
