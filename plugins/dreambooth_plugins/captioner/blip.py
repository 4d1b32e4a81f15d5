"""Captions by BLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth import Captioner
from dreambooth.component import JobPath
from dreambooth_plugins.common.folders import not_of_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL.Image import Image

    from dreambooth import Job, Problem
    from dreambooth.interfaces import ModelInfo


class Blip(Captioner):
    """One sentence a picture, by BLIP (Li et al. 2022, arXiv:2201.12086), transformers' own."""

    kind: Literal["blip"] = "blip"
    model: JobPath
    """A folder in the form of transformers (blip-image-captioning-base or -large)."""
    prompt: str = ""
    """Words that the caption begins with, e.g. `a photo of`."""
    max_tokens: int = Field(default=40, ge=1, le=500)
    """Tokens of a caption, at most."""
    beams: int = Field(default=3, ge=1, le=16)
    """Captions that are followed at once; the likeliest one is taken."""

    def check(self, job: Job | None, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a folder that is none of BLIP's."""
        yield from not_of_type(self.model, "blip", ("captions", "model"), "a BLIP captioning model")

    def captions(self, images: Sequence[Image], device: str) -> Sequence[str]:
        """Return a caption a picture."""
        from dreambooth_plugins.captioner.networks import BlipNet, opened

        net = opened(BlipNet, self.model, device)
        return [net.caption(image, self.prompt, self.max_tokens, self.beams) for image in images]
