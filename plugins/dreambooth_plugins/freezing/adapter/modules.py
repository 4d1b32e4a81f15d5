"""Adapters in a model: put on, found, switched off, taken out."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dreambooth.errors import JobError
from dreambooth.interfaces import Artifact
from dreambooth_plugins.common.libraries import BaseTunerLayer
from dreambooth_plugins.freezing.adapter.methods import Ranked
from dreambooth_plugins.freezing.adapter.peft_layers import ADAPTER, Layer, inject, layer_for, load
from dreambooth_plugins.freezing.adapter.targets import find, matches, nothing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Module, Parameter

    from dreambooth.interfaces import Context, LoadedModel
    from dreambooth_plugins.formats.lora.low_rank import Factors, LowRank
    from dreambooth_plugins.freezing.adapter.methods import Method

RANDOM = (
    "lora_A",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_t1", "hada_t2",
    "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
"""What begins with random numbers; the rest begins so that the update is zero."""


def layers(module: Module) -> dict[str, str]:
    """Return the modules an adapter can be put on: name -> `linear` or `conv`."""
    kinds = {nn.Linear: "linear", nn.Conv2d: "conv"}
    return {n: kinds[type(m)] for n, m in module.named_modules() if type(m) in kinds}


def tuner_layers(module: Module) -> dict[str, Any]:
    """Return the modules that carry an adapter, by the name of the module they stand for."""
    return {n: m for n, m in module.named_modules() if isinstance(m, BaseTunerLayer)}


@dataclass(frozen=True)
class PartOptions:
    """What a part is to get."""

    method: Method
    targets: Sequence[str]
    """Presets and globs."""


def attach(
    wanted: Mapping[str, PartOptions],
    given: Mapping[str, Mapping[str, LowRank | Factors]],
    model: LoadedModel,
    ctx: Context,
) -> None:
    """Put adapters onto the `wanted` parts: those of a file (part -> module) where `given`.

    `JobError` where a glob or a preset finds nothing. Initial values are functions of (seed,
    qualified name): another target changes no other adapter. They are float32 and unrounded
    whatever the base is held in.
    """
    plans = _choose({p: options for p, options in wanted.items() if p not in given}, model)
    for part, options in wanted.items():
        module, found = model.parts[part], given.get(part, {})
        if part in given:
            plans[part] = {name: layer_for(a, options.method) for name, a in found.items()}
        # PEFT's own initial draw comes from the global generator, and is replaced below.
        with torch.random.fork_rng(devices=[]):
            inject(module, options.method, plans[part], part)
        _begin(part, module, ctx)
        for name, adapter in found.items():
            load(adapter, tuner_layers(module)[name])
        _measure_magnitudes(module, found)


def _choose(wanted: Mapping[str, PartOptions], model: LoadedModel) -> dict[str, dict[str, Layer]]:
    """Return the layers of each part with their ranks, and make sure every glob names some."""
    named = {part: layers(model.parts[part]) for part in wanted}
    hits: dict[str, int] = {}
    plans = {}
    for part, options in wanted.items():
        presets = model.info.adapter_presets.get(part, {})
        found = find(options.targets, presets, part, named[part])
        for target, modules in found.items():
            hits[target] = hits.get(target, 0) + len(modules)
        chosen = {name for modules in found.values() for name in modules}
        ordered = [name for name in named[part] if name in chosen]
        plans[part] = plan(options.method, part, ordered)
    everything = [f"{part}.{name}" for part, modules in named.items() for name in modules]
    for target, count in hits.items():
        if not count:
            raise nothing("targets", target, everything)
    for part, layers_of in plans.items():
        if not layers_of:
            own = ", ".join(wanted[part].targets)
            raise JobError(
                f"freezing: the targets ({own}) name nothing in {part}",
                f"give it targets of its own in freezing.parts.{part}, or take it out of train",
            )
    _check_patterns({part: options.method for part, options in wanted.items()}, plans)
    return plans


def _check_patterns(
    methods: Mapping[str, Method], plans: Mapping[str, Mapping[str, Layer]]
) -> None:
    """Raise `JobError` for a pattern of ranks or alphas that names none of a method's modules."""
    for method in methods.values():
        sharing = [p for p in plans if methods[p] is method]
        for option in ("ranks", "alphas") if isinstance(method, Ranked) else ():
            for pattern in getattr(method, option):
                if not any(matches(pattern, p, name) for p in sharing for name in plans[p]):
                    adapted = [f"{p}.{name}" for p in sharing for name in plans[p]]
                    raise nothing(f"method.{option}", pattern, adapted)


def plan(method: Method, part: str, modules: Sequence[str]) -> dict[str, Layer]:
    """Return each module's rank and alpha."""
    if not isinstance(method, Ranked):
        return {name: Layer() for name in modules}

    def first(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
        return next((v for p, v in patterns.items() if matches(p, part, name)), default)

    out = {}
    for name in modules:
        rank = first(method.ranks, name, method.rank)
        alpha = first(method.alphas, name, method.alpha)
        out[name] = Layer(rank, float(rank if alpha is None else alpha))
    return out


def own_parameters(layer: Any) -> dict[str, Parameter]:
    """Return the adapter's parameters of one layer, by their name below it."""
    return {
        f"{attribute}.{name}": parameter
        for attribute in dict.fromkeys(layer.adapter_layer_names)
        for name, parameter in getattr(layer, attribute).named_parameters()
    }


def adapter_parameters(model: LoadedModel, parts: Sequence[str]) -> dict[str, Parameter]:
    """Return the adapters' parameters by qualified name."""
    return {
        f"{part}.{module}.{name}": parameter
        for part in parts
        for module, layer in tuner_layers(model.parts[part]).items()
        for name, parameter in own_parameters(layer).items()
    }


@torch.no_grad()
def _begin(part: str, module: Module, ctx: Context) -> None:
    """Give the adapters float32 values: random ones from (seed, name), the others as PEFT does."""
    for name, layer in tuner_layers(module).items():
        for own, parameter in own_parameters(layer).items():
            parameter.data = parameter.data.float()
            if own.split(".", 1)[0] in RANDOM and parameter.device.type != "meta":
                draw = ctx.random(f"adapter:{part}.{name}.{own}")
                values = torch.empty(parameter.shape)
                nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=draw)
                parameter.copy_(values)


@torch.no_grad()
def _measure_magnitudes(module: Module, given: Mapping[str, LowRank | Factors]) -> None:
    """Let DoRA's magnitudes be the norms of the weights as they are: the first output is theirs.

    PEFT has measured them already, but in the base's precision and before `init` was read.
    """
    for name, layer in tuner_layers(module).items():
        magnitudes = getattr(layer, "lora_magnitude_vector", {})
        if ADAPTER in magnitudes and getattr(given.get(name), "magnitude", None) is None:
            magnitudes[ADAPTER].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[ADAPTER].weight,
                lora_B=layer.lora_B[ADAPTER].weight,
                scaling=layer.scaling[ADAPTER],
            )


@contextmanager
def disabled(model: LoadedModel, parts: Sequence[str]) -> Iterator[None]:
    """Switch the adapters off for the block, then put every flag back as it was.

    Yields nothing: the model itself shows the base (see `FreezingPolicy.showing_base`).

    Texts that were encoded with an adapted text encoder are not the base's: within the block
    they are encoded anew.
    """
    adapted = [layer for part in parts for layer in tuner_layers(model.parts[part]).values()]
    flags = [(p, p.requires_grad) for layer in adapted for p in own_parameters(layer).values()]
    texts = set(parts) & set(model.info.part_names("text_encoders"))
    kept = (model.embeddings, model.text_is_frozen)
    try:
        for layer in adapted:
            layer.enable_adapters(False)
        if texts:
            model.embeddings, model.text_is_frozen = {}, False
        yield
    finally:
        for layer in adapted:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.embeddings, model.text_is_frozen = kept


def artifact(
    methods: Mapping[str, Method], model: LoadedModel, weights: Mapping[str, Tensor]
) -> Artifact:
    """Return the adapters: weights by qualified name, and the facts of each module.

    `metadata["adapters"][part]` holds `method`, and `modules`: name -> `rank`, `alpha`, `scale`
    (empty for methods without a rank).
    """
    adapters = {}
    for part, method in methods.items():
        found = tuner_layers(model.parts[part])
        adapters[part] = {
            "method": method.model_dump(mode="json"),
            "modules": {name: _facts(layer) for name, layer in found.items()},
        }
    return Artifact("adapter", weights, {"adapters": adapters})


def _facts(layer: Any) -> dict[str, float]:
    alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None)
    if not alphas:
        return {}
    return {
        "rank": layer.r[ADAPTER],
        "alpha": float(alphas[ADAPTER]),
        "scale": float(layer.scaling[ADAPTER]),
    }


def describe(method: Method, model: LoadedModel, part: str) -> str:
    """Return a line for the plan: `unet: lora on 24 modules, rank 8, alpha 8`."""
    facts = [_facts(layer) for layer in tuner_layers(model.parts[part]).values()]
    text = f"{part}: {method.kind} on {len(facts)} modules"
    for name in ("rank", "alpha"):
        values = sorted({f[name] for f in facts if name in f})
        if values:
            text += f", {name} {' and '.join(f'{v:g}' for v in values)}"
    return text
