"""Folders in the form of transformers, looked at without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import Problem
from dreambooth.files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dreambooth.component import Location


def not_of_type(folder: Path, model_type: str, at: Location, what: str) -> Iterator[Problem]:
    """Report a folder that holds no model of a type, or one without safetensors.

    `what` says which model is wanted, as people name it.
    """
    if not folder.is_dir():
        yield Problem(at, f"there is no folder {folder}", f"name the folder of {what}")
        return
    try:
        found = str(read_object(folder / "config.json").get("model_type"))
    except (OSError, ValueError):
        yield Problem(at, f"{folder} has no config.json that can be read",
                      f"name the folder of {what}")  # fmt: skip
        return
    if found != model_type:
        yield Problem(at, f'{folder} holds a model of type "{found}"', f"name {what}")
    elif not any(folder.glob("*.safetensors")):
        yield Problem(at, f"{folder} has no .safetensors file",
                      "pickled weights are not opened: take the model's safetensors")  # fmt: skip
