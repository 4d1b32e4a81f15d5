"""Colour profiles: what the numbers of a picture mean, turned into sRGB."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, features

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour space of a profile that belongs to pixels of a mode."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert mode L, RGB, CMYK or LAB to RGB through its profile; without a usable one, plainly.

    A grey picture may carry the profile of a coloured one (it was turned grey later): each grey
    is then a colour of that profile. A profile of another space says nothing about the pixels.
    """
    if image.mode == "LAB":
        return _through(image, None) or _plain(image)
    if not profile or not features.check("littlecms2"):
        return _plain(image)
    return _through(image, profile) or _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _through(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Return the converted image; None where the profile cannot serve or means sRGB anyway."""
    from PIL import ImageCms

    try:
        if profile is None:
            return _converted(image, ImageCms.createProfile("LAB"))
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if "srgb" in ImageCms.getProfileDescription(source).lower() and space == "RGB":
            return None  # sRGB stays as it is, to the bit
        if image.mode == "L" and space == "RGB":
            return _converted(image.convert("RGB"), source)
        return _converted(image, source) if space == SPACES.get(image.mode) else None
    except (ImageCms.PyCMSError, OSError):
        return None  # a damaged profile says nothing about the pixels


def _converted(image: Image.Image, source: Any) -> Image.Image | None:
    from PIL import ImageCms

    target = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
