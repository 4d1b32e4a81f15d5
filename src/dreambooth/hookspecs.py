"""The hooks: one a slot, which collects classes, and those for commands of `dbt` and their files.

What classes do is up to the job that names them.

A plugin is a module (or any object) registered under the entry-point group `dreambooth`:

    [project.entry-points.dreambooth]
    my-plugin = "my_package.plugin"

A module with commands is named in the group `dreambooth.commands`. Every hook is called once a
process, before the first job is checked, takes no argument and returns a list. A package that is
merely installed changes no run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import typer

    from dreambooth.component import Section
    from dreambooth.interfaces import (
        Callback,
        Captioner,
        DataSource,
        Exporter,
        FindingRule,
        FreezingPolicy,
        Loss,
        LRSchedule,
        Masker,
        Metric,
        Model,
        Optimizer,
        Prior,
        SafetyChecker,
        Sampler,
        Scheduler,
        Tracker,
    )

PROJECT = "dreambooth"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class FileKind:
    """A kind of YAML file that a command reads; its functions import what they need when called."""

    name: str
    """What `dbt schema --of` calls it: `sweep`."""
    marker: str
    """A key of its top level that no job has: a file with it is one of this kind."""
    model: Callable[[], type[Section]]
    """Returns the model that such a file is typed by, for the JSON Schema."""
    check: Callable[[Path], str]
    """Checks a file and returns it in one line. Raises `JobError` with everything that is wrong
    (`dreambooth.api.read_file` gives the places)."""


@hookspec
def register_models() -> list[type[Model]]:
    """Return model families (`model:` in a job), e.g. `[StableDiffusion]`.

    Opened once at the start of a run and again on the `meta` device for the plan.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_data_sources() -> list[type[DataSource]]:
    """Return sources of instance images (`data:`), e.g. `[Folder]`.

    Scanned once at the start; images are loaded while the cache is built, or each step.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_priors() -> list[type[Prior]]:
    """Return ways to keep the class (`prior:`), e.g. `[Generated]`.

    Opened while the model is still the frozen base; asked for class rows at each step.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_freezing_policies() -> list[type[FreezingPolicy]]:
    """Return policies that decide what trains (`freezing:`), e.g. `[Components]`.

    Asked once at set-up, after the prior is ready and before the optimizer is built.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_losses() -> list[type[Loss]]:
    """Return training losses (`loss:`), e.g. `[PriorPreservation]`.

    Called at every micro-batch with the tensors of the step.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_schedulers() -> list[type[Scheduler]]:
    """Return noise schedulers (`scheduler:`), e.g. `[DDPM]`.

    Opened once; draws timesteps and noise for every row, and configures the sampler's solver.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_samplers() -> list[type[Sampler]]:
    """Return samplers (`sampler:`), e.g. `[ClassifierFreeGuidance]`.

    Called for class images, for previews and by `dbt sample`.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_optimizers() -> list[type[Optimizer]]:
    """Return optimizers (`optimizer:`), e.g. `[AdamW]`. Built once what trains is known."""
    raise NotImplementedError  # abstract


@hookspec
def register_lr_schedules() -> list[type[LRSchedule]]:
    """Return learning-rate schedules (`lr_schedule:`), e.g. `[Cosine]`. Asked at every step."""
    raise NotImplementedError  # abstract


@hookspec
def register_trackers() -> list[type[Tracker]]:
    """Return trackers (an item of `trackers:`), e.g. `[TensorBoard]`. Opened once a run."""
    raise NotImplementedError  # abstract


@hookspec
def register_metrics() -> list[type[Metric]]:
    """Return metrics (an item of `metrics:`), e.g. `[Diversity]`. Called on each set of samples."""
    raise NotImplementedError  # abstract


@hookspec
def register_exporters() -> list[type[Exporter]]:
    """Return file formats (an item of `exports:`), e.g. `[Diffusers]`. Called at the end."""
    raise NotImplementedError  # abstract


@hookspec
def register_callbacks() -> list[type[Callback]]:
    """Return watchers (an item of `callbacks:`), e.g. `[TimeLimit]`. Called at every event."""
    raise NotImplementedError  # abstract


@hookspec
def register_findings() -> list[type[FindingRule]]:
    """Return rules that say in words how a run went (an item of `findings:`), e.g. `[Learned]`.

    Asked once a run is trained and measured, and by `dbt evaluate`.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_safety() -> list[type[SafetyChecker]]:
    """Return checkers of drawn pictures (`safety:`), e.g. `[OpenNSFW]`.

    Asked of previews and of what `dbt sample` draws, before anything is written.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_captioners() -> list[type[Captioner]]:
    """Return what describes pictures in words (`dbt doctor --captions`), e.g. `[Blip]`."""
    raise NotImplementedError  # abstract


@hookspec
def register_maskers() -> list[type[Masker]]:
    """Return what finds the subject in pictures (`dbt doctor --masks`), e.g. `[U2Net]`."""
    raise NotImplementedError  # abstract


@hookspec
def register_commands() -> list[Callable[..., None] | typer.Typer]:
    """Return commands that join `dbt`: functions with typer's annotations, or apps of several.

    In a module of its own, named under the entry-point group `dreambooth.commands`: `dbt --help`
    loads that group, so neither torch nor anything else that is heavy may be imported there but
    inside the function. A command is named as its function is (`_` becomes `-`), an app by its
    `name`; the first line of the docstring is its line in `dbt --help`.
    """
    raise NotImplementedError  # abstract


@hookspec
def register_files() -> list[FileKind]:
    """Return the kinds of files that commands of the same module read, e.g. a sweep's.

    `dbt validate FILE` checks a file whose top level has a kind's `marker`, and `dbt schema --of
    NAME` prints its JSON Schema. Called with `register_commands`, so nothing heavy is imported.
    """
    raise NotImplementedError  # abstract
