"""Writes to a wandb run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import wandb

from dreambooth.files import write_text
from dreambooth.interfaces import TrackerWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image


class WandbWriter(TrackerWriter):
    """One wandb run, whose id is kept in the run folder (`wandb/run-id.txt`).

    Rows carry the optimizer step as a value of their own. wandb's own step only ever grows and
    drops what comes late, such as the last samples after the last numbers were sent.
    """

    def __init__(
        self, folder: Path, *, mode: Literal["online", "offline", "disabled"], **options: Any
    ) -> None:
        """Take the run folder and `wandb.init`'s own options."""
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            **options,
            mode=mode,
            allow_val_change=True,
            dir=folder,
            id=run_id(folder),
            resume="allow",
            # Leave alone a run that a notebook has open.
            reinit="create_new",
            # Output is ours, but for the address of an online run; code and patches of the
            # working directory are nobody's business.
            settings=wandb.Settings(
                console="off",
                quiet=True,
                silent=mode != "online",
                disable_git=True,
                disable_code=True,
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send one row of numbers."""
        self._run.log({"step": step, **values})

    def images(
        self, step: int, name: str, images: Sequence[Image], captions: Sequence[str]
    ) -> None:
        """Send the pictures with their captions."""
        named = [*captions, *[None] * len(images)]
        pictures = [wandb.Image(image, caption=named[i]) for i, image in enumerate(images)]
        self._run.log({"step": step, name: pictures})

    def close(self) -> None:
        """Send what is left and end the wandb run; a later resume takes it up again."""
        self._run.finish()


def run_id(folder: Path) -> str:
    """Return the wandb run id that belongs to a run folder, made on first use."""
    path = folder / "wandb" / "run-id.txt"
    if not path.exists():
        write_text(path, uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()
