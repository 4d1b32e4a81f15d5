"""From files to modules: one part at a time, by diffusers' and transformers' own loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch.nn import Module

from dreambooth.errors import JobError, RunError, UserError
from dreambooth_plugins.common.dtypes import HEADER_NAMES, torch_dtype
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.common.libraries import diffusers
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.formats.original.names import with_text_model
from dreambooth_plugins.model.folder.memory_map import own_memory

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source


def class_of(part: Part) -> Any:
    """Return the class a part is loaded by."""
    if part.library == "diffusers":
        return getattr(diffusers, part.cls)
    import transformers

    return getattr(transformers, part.cls)


class Parts(Mapping[str, Module]):
    """Modules by name, loaded when first asked for; iterating does not load."""

    def __init__(self, names: Sequence[str], load: Callable[[str], Module]) -> None:
        self._names = tuple(names)
        self._load = load
        self.loaded: dict[str, Module] = {}

    def __getitem__(self, name: str) -> Module:
        if name not in self._names:
            raise KeyError(name)
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what the libraries raise on files that are damaged or do not fit into `RunError`.

    That can be anything: OSError, ValueError, SafetensorError, UnpicklingError, KeyError, ...
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):  # no fault of the file: told by the engine
            raise
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise RunError(
            f"{what}: {type(error).__name__}: {said}",
            "the file is damaged, or does not fit its configuration: download it again",
        ) from error


def skeleton(source: Source, part: str) -> Module:
    """Build a part from its configuration on the `meta` device: shapes and names, no weights."""
    config, known = source.part_config(part), source.part(part)
    where = f"{source.config_folder(part) / 'config.json'} describes no {part}"
    with quiet(), told(where), torch.device("meta"):
        cls = class_of(known)
        if known.library == "transformers":
            module = cls(cls.config_class.from_dict(config))
        else:
            module = cls.from_config(config)
    return frozen(module)


def frozen(module: Module) -> Module:
    """Put a module into evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


def load_part(source: Source, part: str, dtype: torch.dtype, *, mapped: bool = False) -> Module:
    """Read a part in `dtype` onto the CPU, frozen; `RunError` unless every weight was there.

    With `mapped`, weights that have the dtype already may stay in the file's memory map.
    """
    files = source.weight_files(part)
    stored = stored_dtype(files) or dtype
    # Some networks draw what the file then replaces: whoever loads moves nobody's generator.
    with quiet(), torch.random.fork_rng(devices=[]):
        if source.single_file(part) is not None:
            module, missing = _from_single_file(source, part, stored)
        else:
            module, missing = _from_folder(source, part, stored)
    if missing:
        raise RunError(
            f"{files[0]} lacks {len(missing)} weights of {part}, e.g. {sorted(missing)[0]}",
            "the file does not fit its configuration: check model.config, or download it again",
        )
    if not mapped or stored != dtype:
        own_memory(module, files, dtype)
    return frozen(module)


def stored_dtype(files: Sequence[Path]) -> torch.dtype | None:
    """Return the one floating type of safetensors files; None for others, or where they mix.

    Read in it, weights stay in the file until they are copied, whatever they are wanted in.
    """
    if any(file.suffix.lower() != ".safetensors" for file in files):
        return None
    try:
        found = {name for file in files for name in read_header(file).dtypes.values()}
    except JobError:
        return None  # a damaged file: whoever loads it says so
    floating = found - {name for name in found if name.startswith(("I", "U", "BOOL"))}
    known = floating & {*HEADER_NAMES.values()}
    return torch_dtype(known.pop()) if known == floating and len(known) == 1 else None


def _from_folder(source: Source, part: str, dtype: torch.dtype) -> tuple[Module, set[str]]:
    file, folder = source.weight_files(part)[0], str(source.config_folder(part))
    known = source.part(part)
    cls = class_of(known)
    options: dict[str, Any] = {"torch_dtype": dtype}
    with told(f"{file} cannot be read as {part}"):
        if known.library == "transformers":
            config = cls.config_class.from_pretrained(folder, local_files_only=True)
            # Names another file to read, pickled ones included: not what was checked and hashed.
            config.transformers_weights = None
            options = {"dtype": dtype, "config": config}
        module, info = cls.from_pretrained(
            folder,
            variant=source.part_variant(part),
            use_safetensors=file.suffix != ".bin",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    return module, set(info["missing_keys"])


def _from_single_file(source: Source, part: str, dtype: torch.dtype) -> tuple[Module, set[str]]:
    path = source.weight_files(part)[0]
    known = source.part(part)
    own_vae = known.role == "vae" and path == source.vae
    found = _read_tensors(path, "" if own_vae else known.original)
    tensors = {with_text_model(name): tensor for name, tensor in found.items()}
    try:
        module = _convert(tensors, source.config_folder(part), known, dtype)
    except (NotImplementedError, KeyError, ValueError, RuntimeError) as error:
        # What diffusers' converters raise where a tensor is absent or has another shape.
        raise RunError(
            f"{path}: its {part} does not fit the configuration in {source.config_folder(part)} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})",
            "check model.config, or download the file again",
        ) from error
    return module, {name for name, p in module.named_parameters() if p.is_meta}


def _convert(
    tensors: dict[str, torch.Tensor], folder: Path, part: Part, dtype: torch.dtype
) -> Module:
    """Convert tensors in the original layout, by diffusers' own mapping."""
    module: Module
    if part.library == "transformers":
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        module = create_diffusers_clip_model_from_ldm(
            class_of(part), tensors, config=str(folder), torch_dtype=dtype, local_files_only=True
        )
    else:
        module = class_of(part).from_single_file(
            tensors, config=str(folder), torch_dtype=dtype, local_files_only=True
        )
    return module


def _read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Read the tensors whose names start with `prefix`."""
    if path.suffix.lower() == ".safetensors":
        with told(f"{path} cannot be read"), safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise RunError(
            f"{path} holds more than weights, or is damaged: {error}",
            "convert it to .safetensors with a tool you trust, on a machine you can lose",
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    named = state.items() if isinstance(state, dict) else ()
    return {k: v for k, v in named if str(k).startswith(prefix) and torch.is_tensor(v)}
