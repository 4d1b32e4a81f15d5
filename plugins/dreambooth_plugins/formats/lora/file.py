"""Somebody's LoRA: whose names it uses, what each tensor is to which module, and the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.formats.embedding import EMBEDDING_FILE
from dreambooth_plugins.formats.lora import diffusers, kohya, peft
from dreambooth_plugins.formats.lora.low_rank import LowRank
from dreambooth_plugins.formats.lora.plausible import DAMAGED, alpha_of, check_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dreambooth.files.headers import Header
    from dreambooth.interfaces import LoadedModel


@dataclass(frozen=True)
class Contents:
    """Names of a file, sorted out."""

    path: Path
    kohya: bool
    tensors: Mapping[tuple[str, str], Mapping[str, str]]
    """(part, module) -> role (`down`, `up`, `alpha`, `magnitude`) -> name in the file. Modules of
    kohya files are by kohya's name."""
    header: Header
    scales: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(part, module) -> alpha, of those that have one of their own in the file."""
    config: Mapping[str, peft.Alphas] = field(default_factory=dict)
    """Alphas by part, from PEFT's configuration where the file has one."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts it has adapters for."""
        return tuple(sorted({part for part, _ in self.tensors}))

    def has(self, part: str, role: str) -> bool:
        """Say whether some module of a part has a tensor in that role."""
        return any(role in roles for (p, _), roles in self.tensors.items() if p == part)

    def scale(self, key: tuple[str, str], name: str, rank: int) -> float:
        """Return alpha / rank (alpha / sqrt(rank) if rank-stabilised); 1 where nothing is said.

        `name` is the module's in memory, `key` that of `tensors`.
        """
        if key in self.scales:
            return self.scales[key] / rank
        alphas = self.config.get(key[0])
        if alphas is None:
            return 1.0
        return alphas.of(name) / (math.sqrt(rank) if alphas.by_rank_root else rank)


def weights_file(path: Path) -> Path:
    """Return the file itself, or the one LoRA file of a folder; `JobError` if there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise JobError(f"there is no file {path}", "name a .safetensors file with a LoRA")
    for name in (diffusers.LORA_FILE, "adapter_model.safetensors"):
        if (path / name).is_file():
            return path / name
    # A learned word may lie beside the adapter.
    files = sorted(f for f in path.glob("*.safetensors") if f.name != EMBEDDING_FILE)
    if len(files) == 1:
        return files[0]
    raise JobError(
        f"{path} holds {len(files)} .safetensors files",
        f"name one of them: {', '.join(f.name for f in files)}" if files else "name a LoRA's file",
    )


def read_contents(path: Path) -> Contents:
    """Sort out what a LoRA file holds, from its header alone; `JobError` where it is none."""
    file = weights_file(path)
    if file.suffix != ".safetensors":
        raise JobError(
            f"{file} is not a .safetensors file", "convert it first: others can run code"
        )
    header = read_header(file)
    by_kohya = kohya.is_kohya(header.shapes)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in header.shapes:
        key, role = _place(name, by_kohya, file)
        if role in found.setdefault(key, {}):
            raise JobError(f'{file} has "{found[key][role]}" and "{name}", which are one', DAMAGED)
        found[key][role] = name
    scales = {}
    for key, roles in found.items():
        where = ".".join(key)
        if not {"down", "up"} <= roles.keys():
            raise JobError(f"{file}: {where} has no pair of LoRA weights", "not a LoRA?")
        check_pair(file, header, where, roles)
        if "alpha" in roles:
            scales[key] = alpha_of(file, header, where, roles["alpha"])
    if not found:
        raise JobError(f"{file} holds no tensors", "not a LoRA?")
    config = {} if by_kohya else peft.alphas(file, header.metadata)
    return Contents(file, by_kohya, found, header, scales, config)


def _place(name: str, by_kohya: bool, file: Path) -> tuple[tuple[str, str], str]:
    """Return the (part, module) and the role of a tensor; `JobError` for what is not taken over."""
    found = kohya.place(name) if by_kohya else diffusers.place(name)
    if found is None or found[1] == "dora_scale":
        what = "DoRA magnitudes in kohya's layout" if found else f'"{name}"'
        raise JobError(
            f"{file} holds {what}, which cannot be taken over",
            "init takes LoRA of SD 1.x and 2.x with diffusers', PEFT's or kohya's names, and "
            "DoRA with diffusers' or PEFT's",
        )
    return found


def read(contents: Contents, model: LoadedModel) -> dict[str, dict[str, LowRank]]:
    """Return part -> module -> its adapter, float32, in the model's order.

    `JobError` for a module or a shape the model lacks. Nothing is read that does not fit: a large
    file takes no more memory than the model's layers.
    """
    from dreambooth_plugins.common.tensors import opened

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
