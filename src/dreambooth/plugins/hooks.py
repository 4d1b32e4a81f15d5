"""Calling a plugin's hooks: known ones, marked ones, and in words what is wrong with the others."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pluggy

from dreambooth import hookspecs
from dreambooth.errors import PluginError
from dreambooth.helpers.text import did_you_mean, redacted
from dreambooth.plugins.found import elapsed, trace

COMMAND_HOOK, FILE_HOOK = "register_commands", "register_files"


def answers(
    plugin: Any, name: str, known: Collection[str], elsewhere: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """Yield what each of a plugin's hooks returns, by the hook's name.

    `elsewhere` says what to do with hooks that this kind of plugin must not have. One manager a
    plugin makes the rollback whole.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    _check_names(manager, plugin, known, elsewhere)
    manager.register(plugin, name)
    for caller in manager.get_hookcallers(plugin) or ():
        if caller.name not in known:  # an optional hook of another version
            continue
        for impl in caller.get_hookimpls():
            if impl.wrapper or impl.hookwrapper:
                raise PluginError(f"hook {caller.name}: wrappers are not supported")
            start = time.perf_counter()
            answer: Any = impl.function()
            trace(f'"{name}" {caller.name}() took {elapsed(start)}, returned {short(answer)}')
            yield caller.name, answer


def _check_names(
    manager: pluggy.PluginManager, plugin: Any, known: Collection[str], elsewhere: Mapping[str, str]
) -> None:
    """Refuse unknown hooks, hooks without the marker, and plugins without any hook."""
    marked = 0
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            if attribute in known:
                raise PluginError(f"{attribute} is not marked: put @hookimpl above it")
            continue
        marked += 1
        name = options.get("specname") or attribute
        if name in elsewhere:
            raise PluginError(f"{name} {elsewhere[name]}")
        if name not in known and not options.get("optionalhook"):
            raise PluginError(f'unknown hook "{name}"; {did_you_mean(name, known)}')
    if not marked:
        raise PluginError("has no hooks: mark functions with @hookimpl from dreambooth")


def describe(error: BaseException) -> str:
    """Say in one line what went wrong, and where in the plugin."""
    if isinstance(error, PluginError):
        return error.message
    text = redacted(" ".join(str(error).split()))
    if isinstance(error, pluggy.PluginValidationError):
        return f"wrong hook signature (hooks take no arguments): {text}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _in_plugin(f.filename)]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        text, where = error.msg, f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def _in_plugin(filename: str) -> bool:
    ours = {__file__, hookspecs.__file__}
    return filename not in ours and not re.search(
        r"importlib|[\\/](pydantic|pluggy)[\\/]", filename
    )


def short(value: Any) -> str:
    """Return a value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
