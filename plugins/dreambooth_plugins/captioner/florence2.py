"""Captions by Florence-2."""

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


class Florence2(Captioner):
    """A sentence or more a picture, by Florence-2 (Xiao et al. 2023, arXiv:2311.06242).

    transformers' own classes: folders with code of their own (`trust_remote_code`) are of another
    layout, and are not opened.
    """

    kind: Literal["florence2"] = "florence2"
    model: JobPath
    """A folder in the form of transformers (florence-community's Florence-2-base or -large)."""
    detail: Literal["sentence", "detailed", "paragraph"] = "sentence"
    """How much is said."""
    max_tokens: int = Field(default=256, ge=1, le=1000)
    """Tokens of a caption, at most."""
    beams: int = Field(default=3, ge=1, le=16)
    """Captions that are followed at once; the likeliest one is taken."""

    def check(self, job: Job | None, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a folder that is none of Florence-2's."""
        wanted = "a Florence-2 model of transformers' own layout"
        yield from not_of_type(self.model, "florence2", ("captions", "model"), wanted)

    def captions(self, images: Sequence[Image], device: str) -> Sequence[str]:
        """Return a caption a picture."""
        from dreambooth_plugins.captioner.networks import FlorenceNet, opened

        net = opened(FlorenceNet, self.model, device)
        return [net.caption(image, self.detail, self.max_tokens, self.beams) for image in images]
