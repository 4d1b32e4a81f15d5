"""Commands of plugins: found, loaded behind a guard, and told by name where they fail.

`dbt --help` and a name that is no command of ours load this group, so it is light: no pydantic, no
slots. A plugin that is broken takes no other with it, and no command of ours gives way.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import typer

from dreambooth.errors import PluginError, UserError
from dreambooth.hookspecs import FileKind
from dreambooth.plugins.found import (
    COMMANDS,
    GROUP,
    OWN_DISTRIBUTION,
    PluginInfo,
    Source,
    discover,
    elapsed,
    spent,
    trace,
)
from dreambooth.plugins.hooks import COMMAND_HOOK, FILE_HOOK, answers, describe, short

if TYPE_CHECKING:
    from collections.abc import Callable

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "PIL")
"""What takes longer to import than the whole of `dbt --help` may."""
PLAIN = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}


class _Hooks(dict[str, str]):
    """Every other hook, and what to do with it."""

    def __contains__(self, name: object) -> bool:
        return str(name).startswith("register_") and name not in (COMMAND_HOOK, FILE_HOOK)

    def __getitem__(self, name: str) -> str:
        return f'belongs into a module named under the entry-point group "{GROUP}"'


@dataclass(frozen=True)
class Joined:
    """The commands that join `dbt`, and all the plugins that wanted to bring some."""

    infos: tuple[PluginInfo, ...]
    commands: Mapping[str, Any]
    """Click commands by name."""
    files: Mapping[str, FileKind] = field(default_factory=dict)
    """Kinds of files by marker; of two with one marker the first one counts."""

    def problems(self) -> list[str]:
        """Return a line for each plugin that does not work."""
        return [f"plugin {i} is broken: {i.error}" for i in self.infos if i.status != "ok"]


def join(taken: Collection[str], sources: Iterable[Source] | None = None) -> Joined:
    """Load the commands of all plugins; names in `taken` are ours.

    Where two plugins bring a command of one name neither has it, and both are told.
    """
    found = [_load(s, taken) for s in (discover(COMMANDS) if sources is None else sources)]
    bringing: dict[str, list[PluginInfo]] = {}
    for info, commands, _ in found:
        for name in commands:
            bringing.setdefault(name, []).append(info)
    twice = {name: infos for name, infos in bringing.items() if len(infos) > 1}
    usable = {n: c for _, commands, _ in found for n, c in commands.items() if n not in twice}
    files = {kind.marker: kind for _, _, kinds in reversed(found) for kind in kinds}
    return Joined(tuple(_marked(info, twice) for info, _, _ in found), usable, files)


def _marked(info: PluginInfo, twice: Mapping[str, list[PluginInfo]]) -> PluginInfo:
    texts = [
        f'command "{name}" is brought by {" and ".join(map(str, infos))}; uninstall one of '
        "them, or have its command renamed"
        for name, infos in twice.items()
        if name in info.commands
    ]
    return replace(info, status="collision", error="; ".join(texts)) if texts else info


def _load(
    source: Source, taken: Collection[str]
) -> tuple[PluginInfo, dict[str, Any], list[FileKind]]:
    info = PluginInfo(source.name, source.distribution, source.version)
    start = time.perf_counter()
    commands: dict[str, Any] = {}
    files: list[FileKind] = []
    before = set(sys.modules)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            plugin = source.load()
            trace(f"{info} imported in {elapsed(start)}")
            if heavy := sorted((sys.modules.keys() - before) & {*HEAVY}):
                raise PluginError(
                    f"imports {' and '.join(heavy)} when it is loaded, and `dbt --help` waits for "
                    "that: import it inside the command's function"
                )
            for hook, answer in answers(plugin, info.name, {COMMAND_HOOK, FILE_HOOK}, _Hooks()):
                if hook == FILE_HOOK:
                    files += _files(answer)
                    continue
                for name, command in _commands(answer, taken):
                    if name in commands:
                        raise PluginError(f'hook {COMMAND_HOOK} brings the command "{name}" twice')
                    commands[name] = _guarded(command, info)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: one plugin must not end the program
        trace(f"{info} is broken\n{''.join(traceback.format_exception(error))}")
        error_line = describe(error)
        return replace(info, status="broken", error=error_line, seconds=spent(start)), {}, []
    return replace(info, commands=tuple(commands), seconds=spent(start)), commands, files


def _files(answer: Any) -> list[FileKind]:
    if not isinstance(answer, list) or not all(isinstance(kind, FileKind) for kind in answer):
        raise PluginError(f"hook {FILE_HOOK} must return a list of FileKind, not {short(answer)}")
    return answer


def _commands(answer: Any, taken: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and click commands of what the hook returned."""
    if not isinstance(answer, list):
        raise PluginError(f"hook {COMMAND_HOOK} must return a list, not {short(answer)}")
    for item in answer:
        name = _name(item)
        command = built(name, item)
        if name in taken:
            raise PluginError(f'command "{name}" is one of dbt\'s own: name yours otherwise')
        if not command.get_short_help_str():
            where = "the function a docstring" if callable(item) else "the app a help text"
            raise PluginError(
                f'command "{name}" says nothing in `dbt --help`: give {where}, whose first '
                "line is shown there"
            )
        yield name, command


def _name(item: Any) -> str:
    if isinstance(item, typer.Typer):
        if not isinstance(item.info.name, str):
            raise PluginError('an app of commands needs a name: typer.Typer(name="mine")')
        return item.info.name
    if not callable(item) or not hasattr(item, "__name__"):
        raise PluginError(
            f"hook {COMMAND_HOOK} must return functions or typer.Typer apps; {short(item)} is none"
        )
    return str(item.__name__).strip("_").replace("_", "-")


def built(name: str, item: Callable[..., Any] | typer.Typer) -> Any:
    """Return the click command of a function or an app; `PluginError` where typer has none."""
    app: Any = item
    if not isinstance(item, typer.Typer):
        app = typer.Typer(**PLAIN)  # type: ignore[arg-type]
        app.command(name)(item)
    app.rich_markup_mode = None  # rich's help takes longer to load than the whole may
    try:
        command = typer.main.get_command(app)
    except Exception as error:
        raise PluginError(
            f'command "{name}": typer cannot read its parameters: {describe(error)}'
        ) from error
    command.name = name
    return command


def _guarded(command: Any, info: PluginInfo) -> Any:
    """Let what a command raises be told under its plugin's name, unless a person can mend it."""
    inner = command.invoke

    def invoke(ctx: Any) -> Any:
        try:
            return inner(ctx)
        except Exception as error:
            if info.distribution == OWN_DISTRIBUTION or _is_told(error):
                raise
            raise PluginError(
                f'plugin {info}, command "{command.name}": {describe(error)}',
                "this is a fault of the plugin; dbt --trace prints the traceback",
            ) from error

    command.invoke = invoke
    return command


def _is_told(error: Exception) -> bool:
    """Say whether somebody tells of an error already: a person's, click's, another plugin's."""
    if isinstance(error, UserError | typer.Abort) or hasattr(error, "exit_code"):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    from dreambooth.errors import is_out_of_memory
    from dreambooth.plugins.faults import plugin_fault

    return is_out_of_memory(error) or plugin_fault(error) is not None
