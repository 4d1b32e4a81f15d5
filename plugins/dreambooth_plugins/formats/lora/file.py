"""The tensors of somebody's LoRA, as adapters of this model's modules."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth_plugins.formats.lora.contents import method_of
from dreambooth_plugins.formats.lora.low_rank import Factors, LowRank
from dreambooth_plugins.formats.lora.plausible import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from dreambooth.interfaces import LoadedModel
    from dreambooth_plugins.formats.lora.contents import Contents

    Adapter = LowRank | Factors
    Shape = tuple[int, ...]


def read(files: Iterable[Contents], model: LoadedModel) -> dict[str, dict[str, Adapter]]:
    """Return part -> module -> its adapter, float32, in the model's order.

    `JobError` for a module or a shape the model lacks. Nothing is read that does not fit: a large
    file takes no more memory than the model's layers.
    """
    out: dict[str, dict[str, Adapter]] = {}
    for contents in files:
        _read_file(contents, model, out)
    order = {
        part: {n: i for i, (n, _) in enumerate(model.parts[part].named_modules())} for part in out
    }
    return {
        part: dict(sorted(modules.items(), key=lambda item: order[part][item[0]]))
        for part, modules in out.items()
    }


def _read_file(contents: Contents, model: LoadedModel, out: dict[str, dict[str, Adapter]]) -> None:
    from dreambooth_plugins.common.tensors import opened

    _check_all(contents, model, out)
    with opened(contents.path, DAMAGED) as file:
        for found in model.read_adapter(_Lazy(file, contents)):
            part, module = found.part, found.module
            tensors = {role: tensor.float() for role, tensor in found.tensors.items()}
            _check_finite(contents, part, module, tensors)
            weight = _weight(contents, model, part, module)
            out.setdefault(part, {})[module] = _adapter(contents, part, module, weight, tensors)


class _Lazy(Mapping[str, "Tensor"]):
    """The tensors of a file by name, each read when it is asked for."""

    def __init__(self, file: Any, contents: Contents) -> None:
        self._file, self._names = file, contents.names

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_all(
    contents: Contents, model: LoadedModel, others: Mapping[str, Mapping[str, Adapter]]
) -> None:
    """Raise `JobError` for a file that does not fit, from the shapes in its header alone."""
    import torch

    shapes = contents.header.shapes
    empty = {name: torch.empty(shapes[name], device="meta") for name in contents.names}
    seen: set[tuple[str, str]] = set()
    for found in model.read_adapter(empty):
        part, module = found.part, found.module
        weight = _weight(contents, model, part, module)
        sizes = {role: tuple(tensor.shape) for role, tensor in found.tensors.items()}
        _check(contents, f"{part}.{module}", weight, sizes)
        if (part, module) in seen or module in others.get(part, {}):
            raise JobError(f"{contents.path} has two adapters for {part}.{module}", DAMAGED)
        seen.add((part, module))


def _adapter(
    contents: Contents, part: str, module: str, weight: Shape, tensors: dict[str, Tensor]
) -> Adapter:
    """Return a module's adapter in the shapes that PEFT's layers have."""
    own = tensors.pop("alpha", None)
    alpha = None if own is None else float(own)
    if method_of(tensors) in ("loha", "lokr"):
        ends = (tensors.get(f) for f in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"))
        ranked = next((t for t in ends if t is not None), None)
        rank = None if ranked is None else ranked.shape[0]
        scale = contents.scale(part, module, rank, alpha)
        return Factors(part, module, tensors, rank or 1, scale)
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:  # a core of k x k between two factors is a down-projection of k x k
        down = (tensors["mid"].flatten(2).permute(2, 0, 1) @ down.flatten(1)).permute(1, 2, 0)
    rank = up.shape[1]
    scale = contents.scale(part, module, rank, alpha)
    norms = tensors.get("magnitude")
    if norms is not None:
        norms = norms.reshape(weight[:1] if len(weight) == 2 else (1, weight[0], 1, 1))
    down, up = down.reshape(rank, *weight[1:]), up.reshape(weight[0], rank, *_ones(weight))
    return LowRank(part, module, down, up, scale * rank, scale, norms)


def _ones(weight: Shape) -> Shape:
    return (1,) * len(weight[2:])


def _weight(contents: Contents, model: LoadedModel, part: str, name: str) -> Shape:
    """Return the shape of the weight an adapter is for; `JobError` where there is none."""
    from torch import nn

    try:
        layer: Any = model.parts[part].get_submodule(name)
    except (AttributeError, KeyError):
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
    return tuple(layer.weight.shape)


def _check(contents: Contents, where: str, weight: Shape, shapes: Mapping[str, Shape]) -> None:
    """Raise `JobError` unless the factors are of the size of the weight.

    Linear layers may be written as convolutions of 1 x 1, and the other way round: kohya's scripts
    do so for the projections of SD 2.x.
    """
    method = method_of(shapes)
    fits = {"loha": _loha_fits, "lokr": _lokr_fits}.get(method, _pair_fits)
    if not fits(weight, shapes):
        listed = {role: list(shape) for role, shape in shapes.items() if role != "alpha"}
        factors = (
            " and ".join(str(listed[role]) for role in ("up", "down"))
            if "up" in listed
            else ", ".join(f"{role} {shape}" for role, shape in sorted(listed.items()))
        )
        more = f", magnitudes {listed['magnitude']}" if "magnitude" in listed else ""
        family = f" ({contents.family})" if contents.family else ""
        raise JobError(
            f"{contents.path}: {where} takes {list(weight)}, the file has {factors}{more}",
            f"the LoRA was made for a model of another size{family}",
        )


def _pair_fits(weight: Shape, shapes: Mapping[str, Shape]) -> bool:
    down, up = (shapes[role] + (1, 1) * (len(shapes[role]) == 2) for role in ("down", "up"))
    core = shapes.get("mid", ())
    kernel, inner = (core[2:], down[2:]) if core else (down[2:], (1, 1))
    norms = shapes.get("magnitude", weight[:1])
    return (
        (up[0], down[1]) == weight[:2]
        and kernel == (weight[2:] or (1, 1))
        and inner == up[2:] == (1, 1)
        and weight[0] == prod(norms) == max(norms)
    )


def _loha_fits(weight: Shape, shapes: Mapping[str, Shape]) -> bool:
    inputs = prod(weight[1:])
    for i in (1, 2):
        a, b, core = (shapes.get(f"hada_{n}", ()) for n in (f"w{i}_a", f"w{i}_b", f"t{i}"))
        found = (a[0], prod(b[1:])) if not core else (a[1], b[1] * prod(core[2:]))
        if found != (weight[0], inputs):
            return False
    return True


def _lokr_fits(weight: Shape, shapes: Mapping[str, Shape]) -> bool:
    rows, columns = 1, 1
    for i in (1, 2):
        core = shapes.get("lokr_t2", ()) if i == 2 else ()
        if whole := shapes.get(f"lokr_w{i}"):
            sides = (whole[0], prod(whole[1:]))
        else:
            a, b = shapes[f"lokr_w{i}_a"], shapes[f"lokr_w{i}_b"]
            sides = (a[1], b[1] * prod(core[2:])) if core else (a[0], prod(b[1:]))
        rows, columns = rows * sides[0], columns * sides[1]
    return (rows, columns) == (weight[0], prod(weight[1:]))


def _check_finite(contents: Contents, part: str, name: str, tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        if not tensor.isfinite().all():
            raise JobError(f"{contents.path}: {part}.{name} holds NaN or infinity", DAMAGED)
