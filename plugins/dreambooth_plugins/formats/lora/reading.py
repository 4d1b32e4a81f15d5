"""The tensors of somebody's LoRA, and putting them into adapters."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dreambooth.errors import JobError
from dreambooth_plugins.formats.lora.plausible import DAMAGED
from dreambooth_plugins.freezing.adapter.methods import LowRank
from dreambooth_plugins.freezing.adapter.peft_layers import ADAPTER, Layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import LoadedModel
    from dreambooth_plugins.formats.lora.file import Contents
    from dreambooth_plugins.freezing.adapter.methods import Method


@dataclass(frozen=True)
class Found:
    """What a file has for one module, float32."""

    down: Tensor
    """[rank, in] or [rank, in, k, k]."""
    up: Tensor
    """[out, rank] or [out, rank, 1, 1]."""
    scale: float
    """What the update up @ down is multiplied by."""
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return self.down.shape[0]

    def layer(self, method: Method) -> Layer:
        """Return the rank, and the alpha that gives the file's scale under a method's rule."""
        stabilized = isinstance(method, LowRank) and method.rank_stabilized
        return Layer(self.rank, self.scale * (math.sqrt(self.rank) if stabilized else self.rank))

    @torch.no_grad()
    def load(self, layer: Any) -> None:
        """Copy the tensors into an adapter that was made for them."""
        layer.lora_A[ADAPTER].weight.copy_(self.down)
        layer.lora_B[ADAPTER].weight.copy_(self.up)
        if self.magnitude is not None:
            layer.lora_magnitude_vector[ADAPTER].weight.copy_(self.magnitude)


def read(contents: Contents, model: LoadedModel) -> dict[str, dict[str, Found]]:
    """Return part -> module -> tensors; `JobError` for a module or a shape the model lacks.

    Nothing is read that does not fit: a large file takes no more memory than the model's layers.
    """
    names = {v: k for k, v in model.adapter_keys("kohya").items()} if contents.kohya else {}
    out: dict[str, dict[str, Found]] = {}
    with _opened(contents.path) as file:
        for key, roles in contents.tensors.items():
            part, module = key
            full = names.get(module.replace("lora_te1_", "lora_te_", 1), f"{part}.{module}")
            name = full.removeprefix(f"{part}.")
            shapes = {role: contents.header.shapes[stored] for role, stored in roles.items()}
            _check(contents, model, part, name, shapes)
            if name in out.get(part, {}):
                raise JobError(f"{contents.path} has two adapters for {part}.{name}", DAMAGED)
            tensors = {role: file.get_tensor(t).float() for role, t in roles.items()}
            _check_finite(contents, part, name, tensors)
            scale = contents.scale(key, name, shapes["down"][0])
            found = Found(tensors["down"], tensors["up"], scale, tensors.get("magnitude"))
            out.setdefault(part, {})[name] = found
    order = {
        part: {n: i for i, (n, _) in enumerate(model.parts[part].named_modules())} for part in out
    }
    return {
        part: dict(sorted(modules.items(), key=lambda item: order[part][item[0]]))
        for part, modules in out.items()
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file that was checked; `JobError` where another took its place meanwhile."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        said = str(error).splitlines()[0]
        raise JobError(f"{path} cannot be read: {said}", DAMAGED) from error


def _check(
    contents: Contents,
    model: LoadedModel,
    part: str,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise `JobError` unless the model has that module, of a size the factors are for."""
    try:
        layer: Any = model.parts[part].get_submodule(name)
    except AttributeError:
        raise JobError(
            f"{contents.path}: the model has no module {part}.{name}",
            "the LoRA was made for another architecture, or with a layout that is not known here",
        ) from None
    if type(layer) not in (nn.Linear, nn.Conv2d):
        kind = type(layer).__name__
        raise JobError(
            f"{contents.path}: {part}.{name} is no layer that takes an adapter ({kind})",
            "linear layers and convolutions take one",
        )
    weight, down, up = tuple(layer.weight.shape), shapes["down"], shapes["up"]
    fits = down[1:] == weight[1:] and up[0] == weight[0] and up[2:] == (1,) * len(weight[2:])
    norms = weight[:1] if len(weight) == 2 else (1, weight[0], 1, 1)
    magnitude = shapes.get("magnitude", norms)
    if not fits or magnitude != norms:
        factors = " and ".join(str(list(shape)) for shape in (up, down))
        more = f", magnitudes {list(magnitude)}" if "magnitude" in shapes else ""
        raise JobError(
            f"{contents.path}: {part}.{name} takes {list(weight)}, the file has {factors}{more}",
            "the LoRA was made for a model of another size",
        )


def _check_finite(contents: Contents, part: str, name: str, tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        if not tensor.isfinite().all():
            raise JobError(f"{contents.path}: {part}.{name} holds NaN or infinity", DAMAGED)
