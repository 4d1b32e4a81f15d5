"""PNG files without the texts that stop a decoder: long workflows, edit histories, big profiles."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT_BYTES = 1 << 20
"""A text or colour profile up to here is left to the decoder, which refuses larger ones."""
TEXT_BYTES = 32 << 20
"""Texts after this many bytes of them are left out, whatever their size."""
PROFILE_BYTES = 32 << 20
"""Colour profiles with large tables take a few megabytes; beyond this one is taken for a trap."""
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


def slim(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG file's bytes without its long texts and long colour profile, and the profile.

    The profile is None where the file keeps its own, or where it is damaged or endless. The
    pixels are the same; a file that ends in the middle of a chunk is returned as far as it goes.
    """
    kept, profile, texts = [SIGNATURE], None, 0
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        body = memoryview(chunk)[8 : 8 + length]
        at += len(chunk)
        if name == b"iCCP" and (found := _long_profile(bytes(body))) is not None:
            profile = found or None
            continue
        if name in _TEXTS:
            if texts > TEXT_BYTES:  # not even looked at: a file of nothing but texts costs time
                continue
            texts += (size := _text_size(name, bytes(body)))
            if size > KEPT_BYTES:
                continue
        kept.append(chunk)
    return b"".join([*kept, data[at:]]), profile


def _text_size(name: bytes, body: bytes) -> int:
    """Return how long a text is, unpacked; where it is longer than is kept, at least that."""
    packed = None
    after = body.partition(b"\0")[2]  # the keyword ends with a zero byte
    if name == b"zTXt":
        packed = after[1:]
    elif name == b"iTXt" and after[:1] == b"\1":
        packed = after[2:].partition(b"\0")[2].partition(b"\0")[2]  # language, translated keyword
    return len(body) if packed is None else len(_unpacked(packed, KEPT_BYTES + 1))


def _long_profile(body: bytes) -> bytes | None:
    """Return a profile that is longer than is kept, b"" for an unusable one; None for others."""
    packed = body.partition(b"\0")[2][1:]
    if len(_unpacked(packed, KEPT_BYTES + 1)) <= KEPT_BYTES:
        return None
    profile = _unpacked(packed, PROFILE_BYTES + 1)
    return profile if len(profile) <= PROFILE_BYTES else b""


def _unpacked(packed: bytes, limit: int) -> bytes:
    """Return the first `limit` bytes of what was deflated; b"" where it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, limit)
    except zlib.error:
        return b""
