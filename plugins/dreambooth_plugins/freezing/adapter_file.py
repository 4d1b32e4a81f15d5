"""Somebody's LoRA: which names its file uses, and what is in it.

Three ways of naming are in use. diffusers: `unet.<module>.lora_A.weight` (PEFT's own), older
`.lora.down.weight`, `.lora_linear_layer.down.weight`, `.processor.to_q_lora.down.weight`; the
ranks and alphas are in the metadata, or equal. PEFT: `base_model.model.<module>.lora_A.weight`
with an adapter_config.json. kohya: `lora_unet_<module>.lora_down.weight` with underscores for
dots, and an `.alpha` a module.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth.files import read_object
from dreambooth_plugins.freezing.adapter_plausible import DAMAGED, Alphas, alpha_of, check_pair
from dreambooth_plugins.freezing.word_file import EMBEDDING_FILE
from dreambooth_plugins.model.headers import read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dreambooth.files.headers import Header
    from dreambooth.interfaces import LoadedModel
    from dreambooth_plugins.freezing.adapter import Adapter

KOHYA = re.compile(
    r"^(?P<module>lora_(?P<part>unet|te|te1)_.+)\.(?P<role>lora_down|lora_up|alpha|dora_scale)"
)
DIFFUSERS = re.compile(
    r"^(?P<module>.+?)(\.lora_linear_layer|\.lora|_lora)?"
    r"\.(?P<role>lora_A|lora_B|down|up|alpha|lora_magnitude_vector)(\.weight)?$"
)
ROLES = {
    "lora_down": "down", "lora_A": "down", "down": "down",
    "lora_up": "up", "lora_B": "up", "up": "up",
    "alpha": "alpha", "lora_magnitude_vector": "magnitude", "dora_scale": "dora_scale",
}  # fmt: skip
OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
CONFIG, METADATA = "adapter_config.json", "lora_adapter_metadata"


@dataclass(frozen=True)
class Contents:
    """Names of a file, sorted out: what each tensor is to which module."""

    path: Path
    kohya: bool
    tensors: Mapping[tuple[str, str], Mapping[str, str]]
    """(part, module) -> role (`down`, `up`, `alpha`, `magnitude`) -> name in the file. Modules of
    kohya files are by kohya's name."""
    header: Header
    scales: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(part, module) -> alpha, of those that have one of their own in the file."""
    config: Mapping[str, Alphas] = field(default_factory=dict)
    """Alphas by part, from PEFT's configuration where the file has one."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts it has adapters for."""
        return tuple(sorted({part for part, _ in self.tensors}))

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
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
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
    kohya = any(name.startswith("lora_") for name in header.shapes)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in header.shapes:
        key, role = _sort(name, kohya, file)
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
    return Contents(file, kohya, found, header, scales, _config(file, header.metadata, kohya))


def _sort(name: str, kohya: bool, file: Path) -> tuple[tuple[str, str], str]:
    match = KOHYA.match(name) if kohya else DIFFUSERS.match(name)
    role = ROLES[match["role"]] if match else ""
    if match is None or role == "dora_scale":
        what = "DoRA magnitudes in kohya's layout" if role else f'"{name}"'
        raise JobError(
            f"{file} holds {what}, which cannot be taken over",
            "init takes LoRA of SD 1.x and 2.x with diffusers', PEFT's or kohya's names, and "
            "DoRA with diffusers' or PEFT's",
        )
    if kohya:
        return ("unet" if match["part"] == "unet" else "text_encoder", match["module"]), role
    module = match["module"].removeprefix("base_model.model.")
    part, _, rest = module.partition(".")
    if part not in ("unet", "text_encoder"):
        part, rest = "unet", module
    return (part, _today(part, rest)), role


def _today(part: str, module: str) -> str:
    """Return a module's name as it is in memory: no `text_model.`, no attention processors."""
    if part == "text_encoder":
        module = module.removeprefix("text_model.")
        head, _, last = module.rpartition(".")
        return f"{head}.{OLD_NAMES[last]}" if last in OLD_NAMES else module
    module = module.replace(".processor.", ".")
    return f"{module}.0" if module.endswith(".to_out") else module


def _config(file: Path, metadata: Mapping[str, str], kohya: bool) -> dict[str, Alphas]:
    """Return PEFT's configuration by part: beside the file, or in its header."""
    beside = file.with_name(CONFIG)
    if kohya:
        return {}
    if beside.exists():
        try:
            return {"unet": Alphas(str(beside), read_object(beside))}
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise JobError(f"{beside} cannot be read: {said}", DAMAGED) from error
    where = f"{file}: {METADATA}"
    try:
        options = json.loads(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        raise JobError(f"{where} in its header is no JSON", DAMAGED) from None
    if not isinstance(options, dict):
        raise JobError(f"{where} in its header is no mapping", DAMAGED)
    config: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        part, _, option = name.partition(".")
        config.setdefault(part, {})[option] = value
    return {part: Alphas(f"{where} of {part}", found) for part, found in config.items()}


def problems(policy: Adapter, path: Path, trained: Iterable[str]) -> Iterator[Problem]:
    """Find what keeps a job from beginning with a file."""
    at = ("freezing", "init")
    try:
        contents = read_contents(path)
    except JobError as error:
        yield Problem(at, error.message, error.hint)
        return
    for part in contents.parts:
        if part not in trained:
            yield Problem(
                at,
                f"{contents.path.name} has adapters for {part}, which does not train here",
                f"add {part} to freezing.train: what the file adapts goes on training",
            )
            continue
        kind = policy.method_of(part).kind
        magnitudes = any(
            "magnitude" in roles for (p, _), roles in contents.tensors.items() if p == part
        )
        if kind not in ("lora", "dora"):
            yield Problem(at, f"{contents.path.name} is a LoRA, {part} is to get {kind}", LIKE)
        elif magnitudes and kind == "lora":
            yield Problem(at, f"{contents.path.name} is a DoRA, {part} is to get lora", LIKE)


LIKE = "set freezing.method to what the file is"


def read_adapter(path: Path, model: LoadedModel) -> dict[str, dict[str, Any]]:
    """Read a file's adapters: part -> module -> what to put there.

    `JobError` where the file is for another architecture, or scales like nothing we know.
    """
    from dreambooth_plugins.freezing.adapter_reading import read

    return read(read_contents(path), model)
