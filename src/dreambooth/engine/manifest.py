"""What a run was made with: versions, hashes, plugins, machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import dreambooth
from dreambooth.engine.devices import describe_machine
from dreambooth.engine.export import automatic_exporters
from dreambooth.engine.session import content
from dreambooth.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.session import Session

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {"dreambooth-trainer": dreambooth.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def describe_run(session: Session) -> dict[str, Any]:
    """Return the manifest's facts about a run that is set up."""
    ctx, model = session.ctx, session.model
    counts: dict[str, int] = {}
    for name, parameter in session.state.parameters.items():
        part = name.split(".", 1)[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {
        "versions": versions(),
        "machine": machine(ctx),
        "plugins": [
            {"name": p.name, "distribution": p.distribution, "version": p.version}
            for p in registry().taking_part(ctx.job, automatic_exporters(ctx.job))
        ],
        "model": {part: model.fingerprint(part) for part in model.info.parts},
        "images": {item.id: " ".join(content(item)) for item in session.scan.items},
        "held_out": [item.id for item in session.split.held_out],
        "rejected": {r.id: r.reason for r in session.scan.rejected},
        "store": pinned(ctx, session.prior.entries()),
        "trainable": counts,
    }


def pinned(ctx: EngineContext, more: Iterable[str]) -> dict[str, Any]:
    """Return the store's entries that the run uses: how each was made, and the hash of its rows."""
    pins = {store.key: store.pin() for store in ctx.stores} if ctx.is_main else {}
    return dict(sorted({**{key: {} for key in more}, **pins}.items()))


def machine(ctx: EngineContext) -> dict[str, Any]:
    """Return what makes runs equal to the bit."""
    return {**describe_machine(ctx.device), "precision": ctx.precision.name}


def check_environment(ctx: EngineContext, recorded: Mapping[str, Any]) -> None:
    """Name what differs from the machine the run began on: its bits will differ too."""
    now = machine(ctx)
    for name in ("device_name", "threads", "cpu_capability", "torch", "precision", "deterministic"):
        if name in recorded and recorded[name] != now[name]:
            ctx.warn(
                f"{name.replace('_', ' ')} was {recorded[name]} when the run began and is "
                f"{now[name]} now: numbers can differ in their last bits"
            )


def check_inputs(ctx: EngineContext, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Name what a resumed run does not find as it was: base weights, pictures, plugins.

    Both are manifests; an empty `recorded` is a fresh run.
    """
    for what, name in (("model", "the base's {}"), ("images", "picture {}")):
        before, now = recorded.get(what, {}), found[what]
        for key in sorted(before.keys() | now.keys()) if before else ():
            if before.get(key) != now.get(key):
                how = "changed" if key in before and key in now else "came or went"
                ctx.warn(f"{name.format(key)} {how} since the run began")
    held_before = recorded.get("held_out", [])
    for name in sorted({*found["held_out"]} - {*held_before} if recorded else ()):
        if name in recorded.get("images", {}):
            ctx.warn(f"picture {name} is held out now, but the run has trained on it before")
    versions_before = {p["name"]: p["version"] for p in recorded.get("plugins", ())}
    for plugin in found["plugins"]:
        old = versions_before.get(plugin["name"], plugin["version"])
        if old != plugin["version"]:
            ctx.warn(f"plugin {plugin['name']} was {old} and is {plugin['version']} now")
