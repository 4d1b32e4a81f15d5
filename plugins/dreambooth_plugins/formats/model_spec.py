"""What a file's header says of where it comes from."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Context, ModelInfo

VERSIONS = {"stable-diffusion-1": "sd_v1", "stable-diffusion-2": "sd_v2"}
"""How kohya's scripts call the families."""
_ARCHITECTURES = {
    ("stable-diffusion-1", "epsilon"): "stable-diffusion-v1",
    ("stable-diffusion-2", "epsilon"): "stable-diffusion-v2-512",
    ("stable-diffusion-2", "v_prediction"): "stable-diffusion-v2-768-v",
}


def run_name(ctx: Context, otherwise: str) -> str:
    """Return the run's name, for files that are called by it."""
    return ctx.job.name if ctx.job is not None else otherwise


def model_spec(info: ModelInfo, job: Any, suffix: str) -> dict[str, str]:
    """Return the `modelspec.*` texts (Stability's ModelSpec 1.0.0); `suffix` is `/lora` or empty.

    No times and no paths, so that equal runs give equal files.
    """
    version = VERSIONS.get(info.family, info.family)
    architecture = _ARCHITECTURES.get((info.family, info.prediction), version)
    out = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + suffix,
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(info.prediction, info.prediction),
    }
    if job is not None:
        height, width = job.data.size
        out |= {
            "modelspec.title": job.name,
            "modelspec.trigger_phrase": f"{job.subject.identifier} {job.subject.class_noun}",
            "modelspec.resolution": f"{width}x{height}",
        }
    return out


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, tensors sorted by name: equal content gives equal bytes."""
    path.touch()
    mode = path.stat().st_mode
    ready = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(ready, path, metadata={"format": "pt", **metadata})
    path.chmod(mode)  # safetensors leaves files that their owner alone can read
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header, in place: safetensors' order differs from call to call."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"the header of {path.name} has no room for its own content")
        file.seek(8)
        file.write(text + b" " * (length - len(text)))
