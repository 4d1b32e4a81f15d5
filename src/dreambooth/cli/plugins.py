"""`dbt plugins`: what is installed, and what each kind takes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambooth.printable import json_text, printable

if TYPE_CHECKING:
    from dreambooth.plugins import PluginInfo, Registry

app = typer.Typer(help="List plugins and show what they bring.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_plugins(as_json: Json = False) -> None:
    """List the installed plugins.

    Where each comes from, whether it works, and which kinds it brings.
    """
    from dreambooth.plugins import registry

    infos = registry().infos
    if as_json:
        _echo_json([asdict(info) for info in infos])
    elif sys.stdout.isatty():
        _table(infos)
    else:
        rows = [(i.name, i.distribution or "-", i.version or "-", i.status) for i in infos]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, info in zip(rows, infos, strict=True):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            typer.echo(printable("  ".join([*cells, _brings(info)]).rstrip()))


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A plugin, a distribution, a slot, a kind, or SLOT/KIND.", metavar="NAME"
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show a plugin, the kinds of a slot, or a kind with its options.

    Types, defaults, meaning, and where it comes from.
    """
    from dreambooth.cli.plugin_details import describe_kind, kind_text, plugin_text, slot_text
    from dreambooth.plugins import registry

    reg = registry()
    infos, keys = find(reg, name)
    kinds = [describe_kind(reg, slot, kind) for slot, kind in keys]
    if as_json:
        _echo_json({"plugins": [asdict(info) for info in infos], "kinds": kinds})
        return
    texts = [plugin_text(reg, info) for info in infos]
    if slot := slot_names().get(name):
        texts.append(slot_text(slot, kinds))
    else:
        texts += [kind_text(kind) for kind in kinds]
    typer.echo(printable("\n\n".join(texts)))


def find(reg: Registry, name: str) -> tuple[list[PluginInfo], list[tuple[str, str]]]:
    """Return the plugins and the (slot, kind) pairs a name means; `UserError` where none."""
    from dreambooth.diagnostics import did_you_mean
    from dreambooth.slots import SLOTS

    if "/" in name:
        return [], [_slot_and_kind(reg, *name.split("/", 1))]
    infos = [i for i in reg.infos if name in {i.name, i.distribution}]
    if slot := slot_names().get(name):
        return infos, [(slot, kind) for kind in sorted(reg.kinds(slot))]
    keys = [(slot, name) for slot in SLOTS if name in reg.kinds(slot)]
    if infos or keys:
        return infos, keys
    for info in reg.infos:
        for slot, kinds in info.kinds.items():
            if name in kinds:  # of a broken or colliding plugin
                reg.provider(slot, name)
    known = {k for slot in SLOTS for k in reg.kinds(slot)}
    known |= {n for i in reg.infos for n in (i.name, i.distribution) if n} | slot_names().keys()
    raise _unknown("plugin or kind", name, did_you_mean(name, sorted(known)), reg.problems())


def slot_names() -> dict[str, str]:
    """Return what a slot is called, by itself and by a job's keys -> its name."""
    from dreambooth.slots import SLOTS

    return {alias: slot.name for slot in SLOTS.values() for alias in (slot.name, *slot.fields)}


def _slot_and_kind(reg: Registry, slot_name: str, kind: str) -> tuple[str, str]:
    from dreambooth.diagnostics import did_you_mean

    slots = slot_names()
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


def _brings(info: PluginInfo) -> str:
    kinds = "; ".join(f"{slot}: {', '.join(kinds)}" for slot, kinds in info.kinds.items())
    if info.status == "broken":
        return info.error
    return f"{kinds} - {info.error}" if info.error else kinds


def _table(infos: tuple[PluginInfo, ...]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("plugin", "distribution", "version", "status", "kinds", box=None, pad_edge=False)
    style = {"ok": "green", "broken": "bold red", "collision": "bold yellow"}
    for info in infos:
        colour = style[info.status]
        brings = Text(printable(_brings(info)), style="red" if info.status == "broken" else "")
        cells = (info.name, info.distribution or "-", info.version or "-")
        table.add_row(
            *(Text(printable(cell)) for cell in cells), Text(info.status, style=colour), brings
        )
    Console().print(table)


def _echo_json(data: Any) -> None:
    typer.echo(json_text(data))
