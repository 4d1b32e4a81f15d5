"""The tensors of somebody's LoRA, held against the model they are to go onto."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from dreambooth.errors import JobError
from dreambooth_plugins.common.tensors import opened
from dreambooth_plugins.formats.lora import kohya
from dreambooth_plugins.formats.lora.low_rank import LowRank
from dreambooth_plugins.formats.lora.plausible import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dreambooth.interfaces import LoadedModel
    from dreambooth_plugins.formats.lora.file import Contents


def read(contents: Contents, model: LoadedModel) -> dict[str, dict[str, LowRank]]:
    """Return part -> module -> its adapter, float32, in the model's order.

    `JobError` for a module or a shape the model lacks. Nothing is read that does not fit: a large
    file takes no more memory than the model's layers.
    """
    names = kohya.modules_by_name(model) if contents.kohya else {}
    out: dict[str, dict[str, LowRank]] = {}
    with opened(contents.path, DAMAGED) as file:
        for key, roles in contents.tensors.items():
            part, module = key
            name = names.get(module, f"{part}.{module}").removeprefix(f"{part}.")
            shapes = {role: contents.header.shapes[stored] for role, stored in roles.items()}
            _check(contents, model, part, name, shapes)
            if name in out.get(part, {}):
                raise JobError(f"{contents.path} has two adapters for {part}.{name}", DAMAGED)
            tensors = {role: file.get_tensor(t).float() for role, t in roles.items()}
            _check_finite(contents, part, name, tensors)
            rank = shapes["down"][0]
            scale = contents.scale(key, name, rank)
            out.setdefault(part, {})[name] = LowRank(
                part, name, tensors["down"], tensors["up"], scale * rank, scale,
                tensors.get("magnitude"),
            )  # fmt: skip
    order = {
        part: {n: i for i, (n, _) in enumerate(model.parts[part].named_modules())} for part in out
    }
    return {
        part: dict(sorted(modules.items(), key=lambda item: order[part][item[0]]))
        for part, modules in out.items()
    }


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
