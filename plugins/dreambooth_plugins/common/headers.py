"""What a checkpoint file holds, read from its header alone: nothing is loaded or unpickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth.files import headers, open_regular
from dreambooth.files.headers import Header

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_PICKLE", "Header", "read_header"]

MAX_PICKLE = 100_000_000
"""Bytes of names in a pickle."""


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, or the names in a zipped pickle (.ckpt).

    `JobError` where the file is cut short or is something else.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return headers.read_header(path)
        return _pickle_header(path)
    except Exception as error:  # foreign bytes: zipfile and pickletools may complain in any way
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise JobError(
            f"{path} cannot be read as a checkpoint: {said}",
            "the download may be incomplete: compare its size or checksum with the source",
        ) from error


def _pickle_header(path: Path) -> Header:
    import pickletools
    import zipfile

    # genops walks over the opcodes without executing any of them.
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if not names:
            raise ValueError("a pickle of a kind that torch does not write")
        if archive.getinfo(names[0]).file_size > MAX_PICKLE:  # a few bytes may unpack to gigabytes
            raise ValueError(f"{names[0]} unpacks to more than {MAX_PICKLE >> 20} MiB")
        ops = pickletools.genops(archive.read(names[0]))
        strings = [str(arg) for op, arg, _ in ops if "UNICODE" in op.name]
    return Header({text: () for text in strings if "." in text})
