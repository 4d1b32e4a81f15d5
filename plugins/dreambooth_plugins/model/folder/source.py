"""Where a model's configuration and weights lie on this machine."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.files import MAX_JSON, read_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dreambooth.interfaces import Role
    from dreambooth_plugins.model.folder.part import Part

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8")
"""What names end in that scale weights of eight bits: those are no weights by themselves."""


def in_eight_bits(kind: str) -> bool:
    """Say whether a header's type is a floating-point number of eight bits."""
    return kind.startswith("F8_")


def check_scales(file: Path, names: Iterable[str]) -> None:
    """Raise `JobError` for weights of eight bits that are to be multiplied by scales beside them.

    Programs that only draw read such files; read as they are, their weights mean something else.
    """
    if found := next((name for name in names if name.endswith(SCALES)), None):
        raise JobError(
            f"{file} holds weights of eight bits with scales of their own ({found})",
            "it is for drawing alone: train on the model in fp16, bf16 or fp32",
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `JobError` names the file where that fails."""
    try:
        return read_object(path)
    except OSError as error:
        raise JobError(
            f"{path} cannot be read: {error.strerror}",
            "the model folder is incomplete: copy or download it again",
        ) from error
    except ValueError as error:
        raise JobError(f"{path} is not valid JSON: {error}", "copy the file again") from error


def check_entries(folder: Path) -> None:
    """Raise `JobError` for what diffusers and transformers would wait for, or read without end.

    They open whatever lies in a folder under a name they know, be it a pipe or a device.
    """
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found = os.stat(entry)
        except OSError:
            continue  # a link to nothing is as good as absent
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise JobError(f"{entry} is a pipe, a device or a socket", "take it out of the folder")
        if entry.suffix in (".json", ".txt") and found.st_size > MAX_JSON:
            raise JobError(
                f"{entry} is larger than {MAX_JSON >> 20} MiB",
                "the model folder is damaged: copy or download it again",
            )


@dataclass(frozen=True)
class Source:
    """The files of one model."""

    parts: tuple[Part, ...]
    """What the family is made of."""
    config: Path
    """Folder with model_index.json and a folder a part, as diffusers lays them out."""
    file: Path | None = None
    """A single checkpoint in the original layout; None: the weights lie beside their configs."""
    vae: Path | None = None
    """Another VAE: a folder, or a checkpoint file."""
    variant: str | None = None
    """Preferred weight files (`fp16`); parts that have none are taken plain."""
    allow_pickle: bool = False
    prediction: str | None = None
    """What the model predicts where that is told besides its files; None: what they say."""

    def part(self, name: str) -> Part:
        """Return a part by its name; `KeyError` where there is none."""
        try:
            return next(part for part in self.parts if part.name == name)
        except StopIteration:
            raise KeyError(name) from None

    def in_role(self, role: Role) -> tuple[Part, ...]:
        """Return the parts in a role."""
        return tuple(part for part in self.parts if part.role == role)

    def config_folder(self, part: str) -> Path:
        """Return the folder that holds a part's config.json."""
        if self.part(part).role == "vae" and self.vae is not None and self.vae.is_dir():
            inner = self.vae / part
            return inner if inner.is_dir() else self.vae
        return self.config / part

    def part_config(self, part: str) -> dict[str, Any]:
        """Return a part's config.json."""
        return read_json(self.config_folder(part) / "config.json")

    def single_file(self, part: str) -> Path | None:
        """Return the checkpoint file a part is taken from, None where it has a folder."""
        if self.part(part).role == "vae" and self.vae is not None:
            return self.vae if self.vae.is_file() else None
        return self.file

    def part_variant(self, part: str) -> str | None:
        """Return the variant a part really has."""
        if self.variant and _find(
            self.config_folder(part), self.part(part), self.variant, ".safetensors"
        ):
            return self.variant
        return None

    def weight_files(self, part: str) -> tuple[Path, ...]:
        """Return a part's weight files; `JobError` where there are none that may be read."""
        if single := self.single_file(part):
            return (single,)
        folder, known = self.config_folder(part), self.part(part)
        if known.library == "transformers" and (folder / "adapter_config.json").is_file():
            raise JobError(
                f"{folder} holds an adapter beside its weights (adapter_config.json)",
                "take it out: transformers would add it to the weights unseen",
            )
        for variant in dict.fromkeys((self.variant, None)):
            if found := _find(folder, known, variant, ".safetensors"):
                return found
        pickled = _find(folder, known, None, ".bin")
        if pickled and self.allow_pickle:
            return pickled
        if pickled:
            raise _pickle_refused(pickled[0])
        others = sorted(f.name for f in folder.glob("*.safetensors") if "-of-" not in f.name)
        raise JobError(
            f"{folder} holds no weights ({known.stem}.safetensors)",
            f"it has {', '.join(others)}: set model.variant, e.g. fp16"
            if others
            else "the model folder is incomplete: copy or download it again",
        )

    def rounded(self) -> tuple[Path, ...]:
        """Return the weight files that hold numbers of eight bits."""
        from dreambooth_plugins.common.headers import read_header

        files = {f: None for part in self.parts for f in self.weight_files(part.name)}
        safe = [file for file in files if file.suffix.lower() == ".safetensors"]
        return tuple(f for f in safe if any(map(in_eight_bits, read_header(f).dtypes.values())))

    def check(self, *, weights: bool) -> None:
        """Raise `JobError` for files that no model folder has, and weights that are damaged.

        `weights=False` where they are still to be downloaded.
        """
        from dreambooth_plugins.common.headers import read_header

        for folder in (self.config, *(self.config_folder(part.name) for part in self.parts)):
            check_entries(folder)
        for name in ("scheduler", *filter(None, (part.tokenizer for part in self.parts))):
            check_entries(self.config / name)
        for part in self.parts if weights else ():
            for file in self.weight_files(part.name):
                if file.suffix.lower() == ".safetensors":
                    check_scales(file, read_header(file).shapes)


def _find(folder: Path, part: Part, variant: str | None, suffix: str) -> tuple[Path, ...]:
    """Return the files that diffusers and transformers take here, none where there are none."""
    stem = part.pickle_stem if suffix == ".bin" else part.stem
    dot_variant = f".{variant}" if variant else ""
    whole = (folder / f"{stem}{dot_variant}{suffix}",)
    named = (f"{stem}{suffix}.index{dot_variant}.json", f"{stem}{dot_variant}{suffix}.index.json")
    index = next((folder / name for name in named if (folder / name).is_file()), None)
    # Where both lie there, transformers takes the whole file, diffusers the shards.
    if whole[0].is_file() and (index is None or part.library == "transformers"):
        return whole
    return _shards(index, suffix) if index else ()


def _shards(index: Path, suffix: str) -> tuple[Path, ...]:
    """Return the files an index names: all of this kind and in its own folder, or `JobError`.

    The libraries read whatever it names: another folder's files, and pickles unasked.
    """
    hint = "the model folder is damaged or incomplete: copy or download it again"
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise JobError(f"{index} names no files", hint)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name) or not name.endswith(suffix):
            raise JobError(f"{index} names {name!r}, which is no {suffix} file beside it", hint)
        if not (index.parent / name).is_file():
            raise JobError(f"{index} names {name}, which is not there", hint)
    return tuple(index.parent / name for name in names)


def _pickle_refused(path: Path) -> JobError:
    return JobError(
        f"{path} is a pickle, which can run code when it is loaded",
        "use a .safetensors file; if you trust this one, set model.allow_pickle: true",
    )


def check_file(path: Path, allow_pickle: bool) -> None:
    """Raise `JobError` unless `path` is a checkpoint file that may be read."""
    if path.suffix.lower() in PICKLES:
        if not allow_pickle:
            raise _pickle_refused(path)
    elif path.suffix.lower() == ".gguf":
        raise JobError(
            f"{path} holds weights of a few bits each (GGUF), which cannot be trained on",
            "use the model as a .safetensors file or a diffusers folder",
        )
    elif path.suffix.lower() != ".safetensors":
        raise JobError(
            f"{path} is not a model file", "name a .safetensors file or a diffusers folder"
        )
