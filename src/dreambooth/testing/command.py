"""A command that joins `dbt`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest

from dreambooth.plugins.commands import HEAVY, join
from dreambooth.plugins.found import Source


class CommandConformance:
    """Tests for a module with `register_commands`: set `plugin` to the module."""

    __test__ = False
    plugin: ClassVar[Any] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect subclasses that have something to test."""
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.plugin is not None

    def test_its_commands_join(self) -> None:
        """They have names, docstrings and parameters that typer reads."""
        from dreambooth.cli import OWN_COMMANDS

        joined = join(OWN_COMMANDS, [Source("mine", "mine", "0", lambda: self.plugin)])
        assert not joined.problems(), joined.problems()[0]
        assert joined.commands, "register_commands() returned none"

    def test_each_says_how_it_is_used(self, capsys: pytest.CaptureFixture[str]) -> None:
        """`dbt COMMAND --help`."""
        joined = join((), [Source("mine", "mine", "0", lambda: self.plugin)])
        for command in joined.commands.values():
            command.main(["--help"], standalone_mode=False)
            assert "Usage:" in capsys.readouterr().out

    def test_its_module_loads_without_what_is_heavy(self) -> None:
        """`dbt --help` loads it."""
        module = self.plugin.__name__
        if not getattr(self.plugin, "__file__", None):
            pytest.skip("made by the test itself")
        code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; "
        code += f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{module} cannot be imported alone: {done.stderr[-600:]}"
        assert not done.stdout.strip(), (
            f"{module} imports {done.stdout.strip()} when it is loaded, and `dbt --help` waits for "
            "that: import it inside the command's function"
        )
