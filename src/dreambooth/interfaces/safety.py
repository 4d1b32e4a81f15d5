"""The safety slot: pictures looked at before they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

Action = Literal["off", "flag", "blur", "refuse"]


class SafetyChecker(Component):
    """Looks at drawn pictures before they are written. Hook: `register_safety`.

    Previews, and what `dbt sample` and `dbt evaluate` draw; class images stay what the class needs.
    An embedded base's pictures are not looked at: it knows drawings of harmless things alone.
    """

    action: Action = "flag"
    """What becomes of a picture whose score is above `threshold`: it is kept and told of (`flag`),
    made unrecognisable (`blur`), or replaced by an empty card (`refuse`). `off` looks at none."""
    threshold: float = 0.5
    """Pictures with a higher score count as unsafe."""

    def scores(self, images: Sequence[Image], device: str) -> Sequence[float]:
        """Return a score a picture: higher is less fit to be seen, a function of it alone.

        `images` are RGB, of any size; `device` is the run's (`cpu`, `cuda:0`), for networks that
        can be there.
        """
        raise NotImplementedError  # abstract
