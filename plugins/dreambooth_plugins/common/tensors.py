"""The tensors of .safetensors files: reading a stranger's, writing our own."""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreambooth.errors import JobError
from dreambooth_plugins.common.dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor


@contextmanager
def opened(path: Path, hint: str) -> Iterator[Any]:
    """Open a file whose header was read; `JobError` with `hint` where it cannot be read now."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        said = str(error).splitlines()[0]
        raise JobError(f"{path} cannot be read: {said}", hint) from error


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: str | None = None,
) -> None:
    """Write a file, tensors sorted by name: equal content gives equal bytes.

    With `dtype` they are cast to it, single numbers (alphas) excepted.
    """
    ready = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        cast = dtype is not None and tensor.ndim > 0
        ready[name] = (tensor.to(torch_dtype(dtype)) if cast and dtype else tensor).contiguous()
    path.touch()
    mode = path.stat().st_mode
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
