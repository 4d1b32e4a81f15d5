"""The checker that came with Stable Diffusion 1.x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import Problem, SafetyChecker
from dreambooth.component import JobPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo


class CompVis(SafetyChecker):
    """CompVis' checker: how near a picture is, in CLIP's eyes, to any of 17 unsafe concepts.

    The score is the largest cosine over its concept's own threshold, and .01 more where one of
    three further concepts is seen: above 0, Stable Diffusion's pipeline would blacken the picture.
    """

    kind: Literal["compvis"] = "compvis"
    model: JobPath
    """The checker's folder (config.json, model.safetensors), or that of a model which has a
    `safety_checker` in it."""
    threshold: float = 0.0
    """Pictures with a higher score count as unsafe; below 0 more, above 0 fewer do."""

    @property
    def folder(self) -> Path:
        """Where the checker itself lies."""
        inside = self.model / "safety_checker"
        return inside if inside.is_dir() else self.model

    def check(self, job: Job | None, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a folder that holds no checker."""
        at, wanted = ("safety", "model"), "name the folder of safety_checker"
        if not (self.folder / "config.json").is_file():
            yield Problem(at, f"there is no safety checker at {self.model}", wanted)
        elif not any(self.folder.glob("*.safetensors")):
            hint = "pickled weights are not opened: take the model's safetensors"
            yield Problem(at, f"{self.folder} has no .safetensors file", hint)

    def scores(self, images: Sequence[Image], device: str) -> Sequence[float]:
        """Return a score a picture, rounded to .001 as the pipeline does."""
        from dreambooth_plugins.safety.concepts import opened

        return opened(self.folder, device).scores(images)
