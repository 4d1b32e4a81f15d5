"""Somebody's LoRA: whose names it uses, and what each tensor is to which module."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.formats.embedding import EMBEDDING_FILE
from dreambooth_plugins.formats.lora import diffusers, kohya, peft
from dreambooth_plugins.formats.lora.families import (
    FAMILIES,
    TWO_STREAMS,
    family,
    method,
    with_article,
)
from dreambooth_plugins.formats.lora.plausible import (
    DAMAGED,
    check_alpha,
    check_factors,
    check_pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dreambooth.files.headers import Header


@dataclass(frozen=True)
class Contents:
    """Names of a file, sorted out."""

    path: Path
    kohya: bool
    tensors: Mapping[tuple[str, str], Mapping[str, str]]
    """(part, module) -> role (`down`, `up`, `mid`, `alpha`, `magnitude`, or a factor's name) ->
    name in the file. Modules of kohya files are by kohya's name."""
    header: Header
    family: str = ""
    """What it is for, "" where the file does not tell."""
    foreign: tuple[str, ...] = ()
    """Names that are no adapter's: a bundled word's, for instance. They are left out."""
    config: Mapping[str, peft.Alphas] = field(default_factory=dict)
    """Alphas by part, from PEFT's configuration where the file has one."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts it has adapters for."""
        return tuple(sorted({part for part, _ in self.tensors}))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are adapters', as the file names them."""
        return tuple(name for roles in self.tensors.values() for name in roles.values())

    def methods(self, part: str) -> set[str]:
        """Return what the adapters of a part are: `lora`, `dora`, `loha`, `lokr`."""
        return {method_of(roles) for (p, _), roles in self.tensors.items() if p == part}

    def scale(self, part: str, module: str, rank: int | None, alpha: float | None = None) -> float:
        """Return alpha / rank (alpha / sqrt(rank) if rank-stabilised); 1 where nothing is said.

        `module` is the name in memory, `alpha` the file's own for it. A LoKr of two whole factors
        has no rank (None): LyCORIS leaves its alpha out of account, PEFT takes the configuration's.
        """
        other = None if part.startswith("text_encoder") else self.config.get("unet")
        alphas = self.config.get(part, other)
        if rank is None:
            rank = alphas.rank if alphas else None
        if rank is None:
            return 1.0
        if alpha is not None:
            return alpha / rank
        if alphas is None:
            return 1.0
        return alphas.of(module) / (math.sqrt(rank) if alphas.by_rank_root else rank)


def method_of(roles: Iterable[str]) -> str:
    """Return what a module's tensors make up."""
    kinds = {role[:5] for role in roles}
    if "hada_" in kinds:
        return "loha"
    if "lokr_" in kinds:
        return "lokr"
    return "dora" if "magnitude" in roles else "lora"


def weights_files(path: Path) -> list[Path]:
    """Return the file itself, or the LoRA files of a folder; `JobError` if there is none.

    PEFT keeps a folder for each part (`unet`, `text_encoder`), with one file each.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise JobError(f"there is no file {path}", "name a .safetensors file with a LoRA")
    for name in (diffusers.LORA_FILE, peft.FILE):
        if (path / name).is_file():
            return [path / name]
    # A learned word may lie beside the adapter.
    inside = (f for f in path.iterdir() if f.suffix.lower() == ".safetensors")
    files = sorted(f for f in inside if f.name != EMBEDDING_FILE)
    if len(files) == 1:
        return files
    parts = [path / part / peft.FILE for part in ("text_encoder", "unet")]
    if not files and (found := [file for file in parts if file.is_file()]):
        return found
    raise JobError(
        f"{path} holds {len(files)} .safetensors files",
        f"name one of them: {', '.join(f.name for f in files)}" if files else "name a LoRA's file",
    )


def read_all(path: Path) -> list[Contents]:
    """Sort out what a file or a folder holds, from headers alone; `JobError` where it is none."""
    return [read_contents(file) for file in weights_files(path)]


def read_contents(path: Path) -> Contents:
    """Sort out what one LoRA file holds, from its header alone; `JobError` where it is none."""
    [file] = weights_files(path)
    if file.suffix.lower() != ".safetensors":
        raise JobError(
            f"{file} is not a .safetensors file", "convert it first: others can run code"
        )
    header = read_header(file)
    by_kohya = kohya.is_kohya(header.shapes)
    found: dict[tuple[str, str], dict[str, str]] = {}
    foreign = []
    for name in header.shapes:
        placed = kohya.place(name) if by_kohya else diffusers.place(name)
        if placed is None:
            foreign.append(name)
            continue
        key, role = placed
        if role in found.setdefault(key, {}):
            raise JobError(f'{file} has "{found[key][role]}" and "{name}", which are one', DAMAGED)
        found[key][role] = name
    meant = family(header)
    _refuse(file, meant, found, foreign)
    for key, roles in found.items():
        _check(file, header, key, roles)
    parts = dict.fromkeys(part for part, _ in found)
    config = {} if by_kohya else peft.alphas(file, header.metadata, parts)
    return Contents(file, by_kohya, found, header, meant, tuple(foreign), config)


def _refuse(
    file: Path, meant: str, found: Mapping[tuple[str, str], object], foreign: list[str]
) -> None:
    """Raise `JobError` for a file of another family or method, or without adapters."""
    hint = (
        f"init takes LoRA, DoRA, LoHa and LoKr of {', '.join(FAMILIES.values())} with diffusers', "
        "PEFT's or kohya's names"
    )
    if meant and meant not in {*FAMILIES.values(), TWO_STREAMS}:
        raise JobError(f"{file} is {with_article(meant)}, which cannot be taken over", hint)
    if what := method(foreign):
        raise JobError(f"{file} holds {what}, which cannot be taken over", hint)
    if not found and foreign:
        some = ", ".join(f'"{name}"' for name in foreign[:3])
        raise JobError(f"{file} holds {some}, which cannot be taken over", hint)
    if not found:
        raise JobError(f"{file} holds no tensors", "not a LoRA?")


def _check(file: Path, header: Header, key: tuple[str, str], roles: Mapping[str, str]) -> None:
    """Hold a module's tensors against its method, and its alpha, where it has one."""
    where = ".".join(key)
    if method_of(roles) in ("loha", "lokr"):
        if {"down", "up", "mid", "magnitude"} & roles.keys():
            raise JobError(
                f"{file}: {where} is a {method_of(roles)} with a LoRA's or DoRA's tensors",
                "LoHa and LoKr can be taken over without them",
            )
        check_factors(file, header, where, roles)
    else:
        if not {"down", "up"} <= roles.keys():
            raise JobError(f"{file}: {where} has no pair of LoRA weights", "not a LoRA?")
        check_pair(file, header, where, roles)
        norms = header.shapes[roles["magnitude"]] if "magnitude" in roles else ()
        if len(norms) == 2 and norms[0] == 1 < norms[1]:
            raise JobError(
                f"{file} holds a DoRA whose magnitudes lie along the inputs ({where})",
                "a DoRA with a magnitude an output can be taken over",
            )
    if "alpha" in roles:
        check_alpha(file, header, where, roles["alpha"])
