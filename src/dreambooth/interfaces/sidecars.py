"""The captioner and masker slots: files beside pictures, made for `dbt doctor` before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL.Image import Image


class Captioner(Component):
    """Describes pictures in words. Hook: `register_captioners`.

    Named in `dbt doctor --captions`, which writes what it says beside the pictures with the
    subject's placeholders in it; no run asks one.
    """

    def captions(self, images: Sequence[Image], device: str) -> Sequence[str]:
        """Return a caption a picture: one line, a function of that picture alone.

        `images` are RGB and upright, of any size; `device` is `cpu`, or the graphics card's
        (`cuda:0`).
        """
        raise NotImplementedError  # abstract


class Masker(Component):
    """Finds the subject in pictures. Hook: `register_maskers`.

    Named in `dbt doctor --masks`, which writes the masks beside the pictures; no run asks one.
    """

    def masks(
        self, images: Sequence[Image], device: str
    ) -> Sequence[np.ndarray[Any, np.dtype[np.float32]]]:
        """Return a mask a picture: [height, width] of that picture, in 0..1, 1 on the subject.

        `images` are RGB and upright, of any size; `device` is `cpu`, or the graphics card's
        (`cuda:0`).
        """
        raise NotImplementedError  # abstract
