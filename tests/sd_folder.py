"""Folders of Stable Diffusion 1.x and 2.x as the tests name them."""

from __future__ import annotations

from functools import partial

from dreambooth_plugins.model import parts_of
from dreambooth_plugins.model.folder.source import Source as AnySource

PARTS = tuple(part.name for part in parts_of.STABLE_DIFFUSION)
STEMS = {part.name: part.stem for part in parts_of.STABLE_DIFFUSION}
Source = partial(AnySource, parts_of.STABLE_DIFFUSION)
