"""`dbt plugins`: what is installed, and what each kind takes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambooth.cli.new import new
from dreambooth.helpers.text import json_text, printable

if TYPE_CHECKING:
    from dreambooth.plugins import PluginInfo, Registry

app = typer.Typer(help="List plugins, show what they bring, begin one.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


app.command("new")(new)


@app.command("list")
def list_plugins(
    ctx: typer.Context,
    as_json: Json = False,
    timing: Annotated[
        bool, typer.Option("--timing", help="Say how long each takes to load, slowest first.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a plugin is broken or collides.")
    ] = False,
) -> None:
    """List the installed plugins.

    Where each comes from, whether it works, and which kinds and commands it brings. A plugin that
    does not work is named on stderr too, and is an error with --strict.
    """
    from dreambooth.console import print_warning
    from dreambooth.errors import EXIT_PLUGIN
    from dreambooth.plugins import registry

    infos = (*registry().infos, *infos_of_commands(ctx))
    if timing:
        infos = tuple(sorted(infos, key=lambda info: -info.seconds))
    if as_json:
        _echo_json([_as_data(info, timing) for info in infos])
    elif sys.stdout.isatty():
        _table(infos, timing)
    else:
        rows = [_cells(info, timing) for info in infos]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, info in zip(rows, infos, strict=True):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            typer.echo(printable("  ".join([*cells, _brings(info)]).rstrip()))
    if unusable := [info for info in infos if info.status != "ok"]:
        for info in unusable if not as_json else ():
            what = "is broken" if info.status == "broken" else "has kinds that others bring too"
            print_warning(f"plugin {info} {what}", f"dbt plugins show {info.name}")
        if strict:
            raise typer.Exit(EXIT_PLUGIN)


def infos_of_commands(ctx: typer.Context) -> tuple[PluginInfo, ...]:
    """Return the plugins that bring commands, where `dbt` is what was called."""
    of_plugins = getattr(ctx.find_root().command, "of_plugins", None)
    return of_plugins().infos if of_plugins else ()


@app.command("show")
def show(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="A plugin, a distribution, a slot, a kind, or SLOT/KIND.", metavar="NAME"
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show a plugin, a slot with its kinds, or a kind with its options.

    Types, defaults, meaning, and where it comes from.
    """
    from dreambooth.cli.display.kinds import (
        describe_kind,
        describe_slot,
        kind_text,
        plugin_text,
        slot_text,
    )
    from dreambooth.console import echo
    from dreambooth.plugins import registry

    reg = registry()
    slot = slots_by_name().get(name)
    joined = [i for i in infos_of_commands(ctx) if name in {i.name, i.distribution, *i.commands}]
    infos, keys = ([], []) if joined and not _is_known(reg, name) else find(reg, name)
    infos += joined
    kinds = [describe_kind(reg, slot, kind) for slot, kind in keys]
    described = [describe_slot(reg, slot)] if slot else []
    if as_json:
        shown = {"plugins": [_as_data(info, False) for info in infos], "kinds": kinds}
        _echo_json({**shown, "slots": described})
        return
    texts = [plugin_text(reg, info) for info in infos] + [kind_text(kind) for kind in kinds]
    texts += map(slot_text, described)
    for line in "\n\n".join(texts).split("\n"):
        echo(line, indent=len(line) - len(line.lstrip()) + 2 * (": " in line))


def find(reg: Registry, name: str) -> tuple[list[PluginInfo], list[tuple[str, str]]]:
    """Return the plugins and the (slot, kind) pairs a name means.

    `UserError` where there is none, and no slot of that name either.
    """
    from dreambooth.helpers.text import did_you_mean
    from dreambooth.plugins.slots import SLOTS

    if "/" in name:
        return [], [_slot_and_kind(reg, *name.split("/", 1))]
    infos = [i for i in reg.infos if name in {i.name, i.distribution}]
    keys = [(slot, name) for slot in SLOTS if name in reg.kinds(slot)]
    if infos or keys or name in slots_by_name():
        return infos, keys
    for info in reg.infos:
        for slot, kinds in info.kinds.items():
            if name in kinds:  # of a broken or colliding plugin
                reg.provider(slot, name)
    known = {k for slot in SLOTS for k in reg.kinds(slot)}
    known |= {n for i in reg.infos for n in (i.name, i.distribution) if n} | set(SLOTS)
    raise _unknown("plugin, slot or kind", name, did_you_mean(name, sorted(known)), reg.problems())


def _is_known(reg: Registry, name: str) -> bool:
    named = any(name in {i.name, i.distribution} for i in reg.infos)
    return named or name in slots_by_name() or any(name in reg.kinds(s) for s in reg.slots())


def slots_by_name() -> dict[str, str]:
    """Return slots by their names and by the keys of a job that they fill."""
    from dreambooth.plugins.slots import SLOTS

    return {alias: slot.name for slot in SLOTS.values() for alias in (slot.name, *slot.fields)}


def _slot_and_kind(reg: Registry, slot_name: str, kind: str) -> tuple[str, str]:
    from dreambooth.helpers.text import did_you_mean

    slots = slots_by_name()
    if slot_name not in slots:
        raise _unknown("slot", slot_name, did_you_mean(slot_name, slots), [])
    slot = slots[slot_name]
    if kind not in reg.kinds(slot):
        if any(kind in info.kinds.get(slot, ()) for info in reg.infos):
            reg.provider(slot, kind)
        why = reg.why_missing(slot, kind)
        near = did_you_mean(kind, reg.kinds(slot))
        raise _unknown(f"{slot} kind", kind, near, [why] if why else [])
    return slot, kind


def _unknown(what: str, name: str, near: str, problems: list[str]) -> Exception:
    from dreambooth.errors import JobError

    hint = "\n".join(problems) or "`dbt plugins list` shows what is installed"
    return JobError("; ".join(filter(None, (f'no {what} "{name}"', near))), hint)


def _as_data(info: PluginInfo, timing: bool) -> dict[str, Any]:
    data = asdict(info)
    return data if timing else {key: v for key, v in data.items() if key != "seconds"}


def _cells(info: PluginInfo, timing: bool) -> tuple[str, ...]:
    took = (f"{info.seconds * 1000:.0f} ms",) if timing else ()
    return (info.name, info.distribution or "-", info.version or "-", *took, info.status)


def _brings(info: PluginInfo) -> str:
    brought = {**info.kinds, **({"commands": info.commands} if info.commands else {})}
    kinds = "; ".join(f"{slot}: {', '.join(kinds)}" for slot, kinds in brought.items())
    if info.status == "broken":
        return info.error
    return f"{kinds} - {info.error}" if info.error else kinds


def _table(infos: tuple[PluginInfo, ...], timing: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head = ("plugin", "distribution", "version", *(("loads in",) if timing else ()), "status")
    table = Table(*head, "kinds", box=None, pad_edge=False)
    style = {"ok": "green", "broken": "bold red", "collision": "bold yellow"}
    for info in infos:
        colour = style[info.status]
        brings = Text(printable(_brings(info)), style="red" if info.status == "broken" else "")
        cells = _cells(info, timing)[:-1]
        table.add_row(
            *(Text(printable(cell)) for cell in cells), Text(info.status, style=colour), brings
        )
    Console().print(table)


def _echo_json(data: Any) -> None:
    typer.echo(json_text(data))
