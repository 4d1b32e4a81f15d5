"""What a run was made with: versions, hashes, plugins, machine."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.context import EngineContext
from dreambooth.engine.data.moments import content
from dreambooth.engine.devices.machine import describe_machine
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.card import captions_of
from dreambooth.errors import JobError
from dreambooth.helpers.naming import versions
from dreambooth.jobs.changes import moved
from dreambooth.jobs.identifiers import automatic_exporters
from dreambooth.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dreambooth.engine.session import Session
    from dreambooth.interfaces import LoadedModel, Scan
    from dreambooth.job import Job
    from dreambooth.runs.outlook import Outlook

WHAT = {"images": "pictures", "model": "weights", "schedule": "options of the noise schedule"}
"""Entries of the manifest that a job which names other places is held against."""
NO_OPTIONS = ("_diffusers_version", "_name_or_path")
"""What a scheduler's configuration says of its origin."""
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


def describe_run(session: Session) -> dict[str, Any]:
    """Return the manifest's facts about a run that is set up."""
    ctx, model = session.ctx, session.model
    counts: dict[str, int] = {}
    for name, parameter in session.state.parameters.items():
        part = name.split(".", 1)[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {
        "versions": {
            **versions("dreambooth-trainer"),
            "python": platform.python_version(),
            **versions(*LIBRARIES),
        },
        "machine": machine(ctx),
        "plugins": [
            {"name": p.name, "distribution": p.distribution, "version": p.version}
            for p in registry().taking_part(ctx.job, automatic_exporters(ctx.job))
        ],
        **describe_base(model),
        "images": {item.id: " ".join(content(item)) for item in session.scan.items},
        "captions": captions_of(ctx.job, session.scan.items),
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


def hold_against(job: Job, scan: Scan, outlook: Outlook) -> None:
    """Do `check_content` ahead of the run: no weights are loaded."""
    meta = torch.device("meta")
    check_content(
        EngineContext(job, meta, Precision("fp32", meta), job.folder, Quiet()), scan, outlook
    )


def check_content(ctx: EngineContext, scan: Scan, outlook: Outlook) -> None:
    """Hold pictures and base against the run's where the job names another place for them.

    A project's folder may move; `JobError` where something else lies at the new place. A run of
    which nothing was recorded yet has nothing to be held against. Call it before the job is
    recorded as the run's.
    """
    places = moved(outlook.changed)
    found: dict[str, Any] = {}
    if "data" in places:
        found["images"] = {item.id: " ".join(content(item)) for item in scan.items}
    if "model" in places:
        found |= describe_base(ctx.job.model.open(ctx))
    for name, now in found.items():
        before = outlook.manifest.get(name)
        if before is None or before == now:
            continue
        other = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        changed = "\n".join(
            f"  {option}: {old!r} -> {new!r}"
            for option, (old, new) in outlook.changed.items()
            if option.startswith("data." if name == "images" else "model.")
        )
        named = ", ".join(other[:5])
        raise JobError(
            f"{ctx.folder} was started with other {WHAT[name]} ({named}):\n{changed}",
            "bring them to the new place, give the job another name, or start anew with --fresh "
            "(the old run is kept beside)",
        )


def describe_base(model: LoadedModel) -> dict[str, Any]:
    """Return what of the base decides what is learned: its parts' content, and its schedule."""
    options = model.info.schedule.items()
    schedule = {name: json.dumps(value) for name, value in options if name not in NO_OPTIONS}
    return {
        "model": {part: model.fingerprint(part) for part in model.info.parts},
        "schedule": {**schedule, "prediction": model.info.prediction},
    }


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
