"""Image files into RGB pixels: every mode, depth and orientation, or a reason why not."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from dreambooth_plugins.data.file_types import HEADER_BYTES, OPENERS, sniff, unread
from dreambooth_plugins.data.png import slim
from dreambooth_plugins.data.profiles import to_srgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are unpacked."""
MAX_ASPECT = 20
"""Longer and narrower ones are refused: nearly nothing of them would be seen in a crop."""

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(Exception):
    """A file that cannot serve as an instance image; the message says why."""


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to mode RGB, 8 bit, as it is meant to be seen.

    EXIF orientation is applied; transparency lies over white; colour profiles are converted to
    sRGB; 16-bit, 32-bit and floating-point greys are scaled, not clipped. Raises `ImageRejected`
    for whatever is no usable still picture.
    """
    return _upright(data, to_rgb)


def decode_alpha(data: bytes) -> Image.Image | None:
    """Decode a picture's transparency to mode L, 255 where it is opaque; None where all of it is.

    Raises `ImageRejected` like `decode`.
    """
    alpha = _upright(data, _alpha)
    return None if alpha.getextrema()[0] == 255 else alpha


def decode_mask(data: bytes) -> Image.Image:
    """Decode a mask file to mode L: how opaque it is where it has transparency, else how light.

    Raises `ImageRejected` like `decode`.
    """
    return _upright(
        data, lambda image: _alpha(image) if image.has_transparency_data else _light(image)
    )


def _alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")


def _light(image: Image.Image) -> Image.Image:
    return to_rgb(image).convert("L")


def _upright(data: bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    with _decoding():
        with _open(data) as image:
            _check_size(image)
            _check_still(image)
            image.load()
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
            done = convert(image)
        return done if turn is None else done.transpose(turn)


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever a decoder raises on foreign bytes into `ImageRejected`."""
    with warnings.catch_warnings():
        # Pillow warns of large sizes (checked here) and odd metadata (of no use here).
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageRejected:
            raise
        except Image.DecompressionBombError as error:
            raise ImageRejected(_too_large()) from error
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
            said = str(error) or type(error).__name__
            cut = "truncat" in said or "broken data stream" in said or "EOF" in said
            what = "truncated or damaged" if cut else "damaged or of an unknown variety"
            raise ImageRejected(f"{what} ({said})") from error


def _open(data: bytes) -> Image.Image:
    kind = sniff(data[:HEADER_BYTES])
    if kind is None or (kind == "JXL" and not _opener(kind)):
        raise ImageRejected(unread(data[:HEADER_BYTES], "") or "not an image")
    if kind == "AVIF" and not features.check("avif"):
        raise ImageRejected("AVIF needs Pillow 11.3 or newer (pip install -U pillow)")
    if kind == "HEIF" and not _opener(kind):
        raise ImageRejected("HEIC needs pillow-heif (pip install pillow-heif), or save it as JPEG")
    profile = None
    if kind == "PNG":
        data, profile = slim(data)
    # One decoder only: Pillow would otherwise try all of them, PostScript's included.
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except UnidentifiedImageError as error:
        raise ImageRejected(f"starts as {kind}, but is damaged beyond its first bytes") from error
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


@cache
def _opener(kind: str) -> bool:
    """Have Pillow read a format that a package beside it adds; False where it is not installed."""
    try:
        opener = import_module(OPENERS[kind])
    except ImportError:
        return False
    if kind == "HEIF":  # the other registers itself as it is imported
        opener.register_heif_opener()
    return True


def _too_large() -> str:
    return f"too large (over {MAX_PIXELS // 1_000_000} megapixels)"


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRejected(_too_large())
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageRejected(f"too narrow ({width} x {height} pixels)")


def _check_still(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format in {"MPO", "HEIF"}:  # cameras put previews beside the picture
        return
    if image.format == "TIFF":
        raise ImageRejected(f"holds {frames} pages: save the one you want")
    raise ImageRejected(f"animated ({frames} frames): save the frame you want as PNG")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as 8-bit sRGB over white; raises `ImageRejected` for odd values."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        return to_srgb(Image.fromarray(_grey(image)), profile)
    if image.mode in {"La", "RGBa"}:  # premultiplied
        image = image.convert(image.mode.upper())
    rgb = to_srgb(_opaque(image), profile)
    if not image.has_transparency_data:
        return rgb
    white = Image.new("RGB", image.size, "white")
    return Image.composite(rgb, white, image.convert("RGBA").getchannel("A"))


def _opaque(image: Image.Image) -> Image.Image:
    """Return the colours alone, in a mode that a colour profile can be of."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    if image.mode in {"1", "LA"}:
        return image.convert("L")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Array:
    """Scale a deep grey image to uint8 [height, width], transparent cells to white."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise ImageRejected(f"grey values from {low:g} to {high:g}: neither 8 nor 16 bit")
    top = _white_level(image, high)
    grey = np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return grey


def _white_level(image: Image.Image, high: float) -> float:
    """Return the value that means white: by the mode where it says so, else by the largest."""
    if image.mode.startswith("I;16") or image.format in {"PNG", "PPM"}:
        return 65535.0
    levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    for level in levels:
        if high <= level:
            return level
    raise ImageRejected(f"floating-point grey values up to {high:g}: none of 1, 255, 65535")


def cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that keeps the aspect of `size` and just covers `target`.

    One side equals the target's, the other is rounded to the nearest pixel and not smaller.
    """
    (h, w), (th, tw) = size, target
    if th * w >= tw * h:  # the height decides: th / h >= tw / w
        return th, max(tw, round(w * th / h))
    return max(th, round(h * tw / w)), tw


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to (height, width) with the antialiased Lanczos filter."""
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
