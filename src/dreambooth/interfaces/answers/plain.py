"""What methods of plugins must return (see `words`), but for tensors (`tensors`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any

from dreambooth.component import Component
from dreambooth.component.door import ADDED
from dreambooth.component.model_info import ModelInfo
from dreambooth.component.tensors import AdapterTensors, Conditioning
from dreambooth.interfaces.answers.words import (
    Answer,
    is_number,
    is_tensor,
    listed,
    of,
    plain,
    shown,
    wants,
)
from dreambooth.interfaces.callback import Callback, Observer, Save, Stop
from dreambooth.interfaces.data import DataSource, Item, Rejected, Sample, Scan
from dreambooth.interfaces.exporter import Check, Exporter
from dreambooth.interfaces.freezing import Artifact, FreezingPolicy, ParameterGroup, Stage
from dreambooth.interfaces.loss import Loss
from dreambooth.interfaces.metric import Finding, FindingRule, Metric, Score
from dreambooth.interfaces.model import LoadedModel, Model
from dreambooth.interfaces.optimizer import LRSchedule, Optimizer
from dreambooth.interfaces.prior import Prior, PriorCost, PriorRow, PriorSet
from dreambooth.interfaces.safety import SafetyChecker
from dreambooth.interfaces.sampler import Sampler
from dreambooth.interfaces.scheduler import NoiseSchedule, Scheduler
from dreambooth.interfaces.sidecars import Captioner, Masker
from dreambooth.interfaces.tracker import Tracker, TrackerWriter
from dreambooth.interfaces.vocabulary import Vocabulary

NONE = type(None)
ADDED[LRSchedule.at] = ("start",)
ADDED[Sampler.forwards] = ("solver_config",)
ADDED[NoiseSchedule.timestep_quantiles] = ("size",)
ADDED[LoadedModel.condition] = ("guidance",)
plain(bool, "True or False", Prior.has_rows, Prior.needs_base, Scheduler.has_snr)
plain(bool, "True or False", TrackerWriter.wants_histograms)
plain(bool, "True or False", FreezingPolicy.learns_word, FreezingPolicy.keeps_base)
plain(bool, "True or False", FreezingPolicy.depends_on_end, LRSchedule.depends_on_end)
plain(bool, "True or False", Vocabulary.has, LoadedModel.encodes_apart)
plain(str, "a text", DataSource.item_prompt, DataSource.row_prompt, Loss.reference_prompt)
plain(str, "a text", FreezingPolicy.base_hint, Exporter.refusal, Exporter.usage)
plain(str, "a text", LoadedModel.fingerprint)
plain(Set, "a set of texts", Loss.required, FreezingPolicy.adapter_methods)
plain(tuple, "a tuple of texts", FreezingPolicy.trained_parts, PriorSet.entries)
plain(tuple, "a tuple of texts", LoadedModel.loaded)
plain(Mapping, "a mapping", LoadedModel.stored_weights, LoadedModel.adapter_keys)
plain(Mapping, "a mapping", LoadedModel.convert, LoadedModel.add_tokens, Vocabulary.words)
plain(Mapping, "a mapping", LoadedModel.adapter_file)
plain(Model, "a Model", Model.at)
plain(Component, "a component", Component.settled)
plain(ModelInfo, "a ModelInfo", Model.describe)
plain(LoadedModel, "a LoadedModel", Model.open, LoadedModel.frozen_copy, LoadedModel.keep_base)
plain((Vocabulary, NONE), "a Vocabulary or None", Model.vocabulary)
plain(PriorSet, "a PriorSet", Prior.open)
plain(PriorCost, "a PriorCost", Prior.cost)
plain(NoiseSchedule, "a NoiseSchedule", Scheduler.open)
plain(TrackerWriter, "a TrackerWriter", Tracker.open)
plain(Observer, "an Observer", Callback.open)
plain((FreezingPolicy, NONE), "a FreezingPolicy or None", FreezingPolicy.at, FreezingPolicy.lighter)
plain((Optimizer, NONE), "an Optimizer or None", Optimizer.lighter)
plain(Check, "a Check", Exporter.verify)
plain(Conditioning, "a Conditioning", LoadedModel.collate, LoadedModel.condition)
plain(Conditioning, "a Conditioning", LoadedModel.joined)
plain(
    AbstractContextManager,
    "a context manager",
    FreezingPolicy.showing_base,
    LoadedModel.without_tokens,
)
listed(str, "texts", DataSource.prompts, Prior.prompts, FreezingPolicy.notes)
listed(str, "texts", Sampler.extra_prompts, Vocabulary.split)
listed(Stage, "Stages", FreezingPolicy.stages)
listed(AdapterTensors, "AdapterTensors", LoadedModel.read_adapter)


@of(Prior.cached, Sampler.sampling_steps, Exporter.stored_bytes)
def _count(answer: Answer, *_: Any, **__: Any) -> str:
    good = isinstance(answer, int) and answer >= 0
    return "" if good else wants(answer, "a count")


@of(Loss.class_weight, Sampler.forwards, Optimizer.state_bytes, LRSchedule.factor, LRSchedule.at)
def _not_negative(answer: Answer, *_: Any, **__: Any) -> str:
    good = is_number(answer) and answer >= 0
    return "" if good else wants(answer, "a finite number of 0 or more")


@of(Component.key, DataSource.pixels_key, NoiseSchedule.solver_config)
def _json_data(answer: Answer, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Mapping):
        return wants(answer, "a mapping")
    try:
        json.dumps(answer)
    except (TypeError, ValueError) as error:
        return f"returned something that is no JSON data: {error}"
    return ""


@of(DataSource.scan)
def _scan(answer: Answer, source: DataSource, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Scan):
        return wants(answer, "a Scan")
    for items, kind in ((answer.items, Item), (answer.rejected, Rejected)):
        if odd := [item for item in items if not isinstance(item, kind)]:
            return f"returned {shown(odd[0])} where a {kind.__name__} is wanted"
    ids = [item.id for item in answer.items]
    if not ids:
        return "found no image; raise a UserError that says where it looked"
    twice = next((i for i in ids if ids.count(i) > 1), None) if len(set(ids)) < len(ids) else None
    return "" if twice is None else f"returned two items named {twice!r}"


@of(DataSource.variants)
def _variants(answer: Answer, *_: Any, **__: Any) -> str:
    good = answer is None or (isinstance(answer, int) and answer >= 1)
    return "" if good else wants(answer, "a count of 1 or more, or None,")


@of(DataSource.load)
def _sample(answer: Answer, source: DataSource, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Sample):
        return wants(answer, "a Sample")
    shape, pixels, mask = (*source.size, 3), answer.pixels, answer.mask
    if getattr(pixels, "shape", None) != shape or str(pixels.dtype) != "uint8":
        return f"returned pixels {shown(pixels)} where ndarray {list(shape)} uint8 is wanted"
    if mask is not None and getattr(mask, "shape", None) != shape[:2]:
        return f"returned a mask {shown(mask)} where ndarray {list(shape[:2])} is wanted"
    if mask is not None and not (0.0 <= float(mask.min()) and float(mask.max()) <= 1.0):
        return "returned a mask with values outside of 0..1"
    return ""


@of(PriorSet.rows)
def _prior_rows(answer: Answer, prior: PriorSet, indices: Sequence[int], step: int) -> str:
    if not isinstance(answer, list):
        return wants(answer, "a list of PriorRows")
    for row in answer:
        if not isinstance(row, PriorRow) or not isinstance(row.prompt, str):
            return f"returned a list with {shown(row)} where PriorRows are wanted"
        if row.latents is not None and not (is_tensor(row.latents) and row.latents.dim() == 3):
            return f"returned a row with latents {shown(row.latents)} where [C, h, w] is wanted"
        if row.target not in {"noise", "reference"}:
            return f"returned a row with the target {row.target!r}"
    if len(answer) % len(indices):
        return f"returned {len(answer)} rows for {len(indices)} instance rows: no whole number each"
    return ""


@of(FreezingPolicy.trainable)
def _trainable(answer: Answer, *_: Any, **__: Any) -> str:
    good = isinstance(answer, Mapping) and all(isinstance(name, str) for name in answer)
    return "" if good else wants(answer, "a mapping of names to parameters")


@of(FreezingPolicy.groups)
def _groups(answer: Answer, policy: FreezingPolicy, names: Sequence[str]) -> str:
    if not isinstance(answer, list) or not all(isinstance(g, ParameterGroup) for g in answer):
        return wants(answer, "a list of ParameterGroups")
    for group in answer:
        for option in ("lr", "weight_decay"):
            value = getattr(group, option)
            if value is not None and not (is_number(value) and value >= 0):
                return f"returned a group with {option} {value!r}, which must be 0 or more"
    grouped = [name for group in answer for name in group.names]
    if sorted(grouped) != sorted(names):
        odd = set(grouped) ^ set(names) or {n for n in grouped if grouped.count(n) > 1}
        return f"returned groups in which {min(odd)!r} is not once; each trainable name must be"
    return ""


@of(FreezingPolicy.artifact)
def _artifact(answer: Answer, policy: FreezingPolicy, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Artifact) or not isinstance(answer.tensors, Mapping):
        return wants(answer, "an Artifact")
    if answer.kind not in policy.artifacts:
        return f"returned an artifact {answer.kind!r}, which its `artifacts` do not name"
    return ""


@of(Optimizer.scalars)
def _numbers(answer: Answer, *_: Any, **__: Any) -> str:
    good = isinstance(answer, Mapping) and all(isinstance(n, str) for n in answer)
    if not good or not all(isinstance(value, Real) for value in answer.values()):
        return wants(answer, "a mapping of names to numbers")
    return ""


@of(Metric.score)
def _scores(answer: Answer, *_: Any, **__: Any) -> str:
    if fault := _numbers(answer):
        return fault
    odd = next((name for name, value in answer.items() if not math.isfinite(value)), None)
    return "" if odd is None else f"returned {odd!r}: {answer[odd]}, which is not finite"


@of(Metric.measure)
def _measures(answer: Answer, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Sequence) or not all(isinstance(s, Score) for s in answer):
        return wants(answer, "a list of Scores")
    odd = next((s for s in answer if not is_number(s.value)), None)
    return "" if odd is None else f"returned {odd.name!r}: {odd.value}, which is not finite"


@of(SafetyChecker.scores)
def _safety_scores(answer: Answer, checker: Any, images: Sequence[Any], device: str) -> str:
    good = isinstance(answer, Sequence) and len(answer) == len(images)
    if not good or not all(is_number(score) for score in answer):
        return wants(answer, f"a list of {len(images)} finite numbers, a score a picture,")
    return ""


@of(Captioner.captions)
def _captions(answer: Answer, captioner: Any, images: Sequence[Any], device: str) -> str:
    good = isinstance(answer, Sequence) and not isinstance(answer, str)
    if not good or len(answer) != len(images) or not all(isinstance(c, str) for c in answer):
        return wants(answer, f"a list of {len(images)} texts, a caption a picture,")
    return ""


@of(Masker.masks)
def _masks(answer: Answer, masker: Any, images: Sequence[Any], device: str) -> str:
    if not isinstance(answer, Sequence) or len(answer) != len(images):
        return wants(answer, f"a list of {len(images)} masks, one a picture,")
    for mask, image in zip(answer, images, strict=True):
        shape = (image.height, image.width)
        if getattr(mask, "shape", None) != shape or str(mask.dtype) != "float32":
            return f"returned a mask {shown(mask)} where ndarray {list(shape)} float32 is wanted"
        if not (0.0 <= float(mask.min()) and float(mask.max()) <= 1.0):
            return "returned a mask with values outside of 0..1"
    return ""


@of(FindingRule.judge)
def _findings(answer: Answer, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Sequence) or not all(isinstance(f, Finding) for f in answer):
        return wants(answer, "a list of Findings")
    odd = next((f for f in answer if f.mark not in {"good", "look", "problem"}), None)
    return "" if odd is None else f"returned a finding with the mark {odd.mark!r}"


@of(Observer.on)
def _order(answer: Answer, *_: Any, **__: Any) -> str:
    if answer is None or isinstance(answer, Save):
        return ""
    if not isinstance(answer, Stop):
        return wants(answer, "Save(), Stop(reason) or None")
    good = isinstance(answer.reason, str) and isinstance(answer.final, bool)
    return "" if good else f"returned {shown(answer)}: a reason is a text, final is True or False"


@of(Observer.state)
def _state(answer: Answer, *_: Any, **__: Any) -> str:
    if not isinstance(answer, Mapping):
        return wants(answer, "a mapping")
    try:
        back = json.loads(json.dumps(answer, allow_nan=False))
    except (TypeError, ValueError) as error:
        return f"returned something that is no JSON data: {error}"
    return "" if back == answer else "returned something that JSON gives back as something else"
