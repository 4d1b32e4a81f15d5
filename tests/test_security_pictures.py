"""Pictures that claim, or unpack to, gigabytes: quarantined before they are unpacked."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def png(width: int, height: int, depth: int = 1, *more: bytes, rows: bytes = b"") -> bytes:
    """Write a PNG by hand: grey, with further chunks before the pixels."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(rows or bytes((width // 8 + 1) * min(height, 100)))
    chunks = map(chunk, (head, *more, body, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@cache
def packed(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 9)


def webp(side: int) -> bytes:
    size = (side - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    body += b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(side: int) -> bytes:
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (278, side), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def bombs() -> dict[str, bytes]:
    """Return small files that claim, or unpack to, gigabytes."""
    jpeg = bytes.fromhex("ffd8ffc0000b08ffffffff01011100ffda0008010100003f00") + bytes(99)
    row = b"\0" + bytes(20_000 // 8)
    return {
        "claimed.png": png(60_000, 60_000),
        "real.png": png(20_000, 20_000, rows=row * 20_000),  # 400 MB as grey
        "claimed.webp": webp(16_384),
        "wide.webp": webp(1 << 16),
        "claimed.tif": tiff(60_000),
        "claimed.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(3) + b"," + bytes(4)
        + struct.pack("<HH", 65_535, 65_535) + bytes(1) + b"\x08\x02\x04\x01\x00;",
        "claimed.jpg": jpeg,
        "claimed.ppm": b"P6 100000 100000 255\n" + bytes(99),
        "claimed.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 50_000, 50_000, 1, 24,
                                            0, 0, 0, 0, 0, 0) + bytes(99),
    }  # fmt: skip


def texts() -> dict[str, bytes]:
    """Return files whose pixels are fine, and whose texts unpack to gigabytes."""
    return {
        "profile.png": png(64, 64, 1, b"iCCPp\0\0" + packed(256)),
        "text.png": png(64, 64, 1, b"zTXtk\0\0" + packed(256)),
        "texts.png": png(64, 64, 1, *[b"iTXtk\0\1\0\0\0" + packed(1)] * 200),
    }


SCAN = """
import json, sys, time
from types import SimpleNamespace
from dreambooth.interfaces import Subject
from dreambooth_plugins.data import Folder
from dreambooth_plugins.data.images import decode
subject = Subject(identifier="ohwx", class_noun="dog")
ctx = SimpleNamespace(warn=print, job=SimpleNamespace(subject=subject))
def peak():  # in MB; rusage would count the parent's memory too
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
decode(open(sys.argv[1] + "/good.png", "rb").read())  # everything is loaded that will be
before, began = peak(), time.monotonic()
scan = Folder(path=sys.argv[1]).scan(ctx)
print(json.dumps({
    "grown": peak() - before, "seconds": time.monotonic() - began,
    "used": [item.id for item in scan.items], "reasons": {r.id: r.reason for r in scan.rejected},
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux tells it")
def test_decompression_bombs_are_quarantined_unpacked(tmp_path: Path, emit: Any) -> None:
    files = bombs()
    for name, data in {**files, **texts()}.items():
        assert len(data) < 1_000_000, name
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(png(64, 64))
    done = subprocess.run(
        [sys.executable, "-c", SCAN, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["used"] == sorted(["good.png", *texts()])  # without their texts
    assert found["reasons"].keys() == files.keys()
    for name in files:
        unpacking = name == "wide.webp"
        assert unpacking or "too large (over 100 megapixels)" in found["reasons"][name], name
    emit("decoding bombs", f"{found['grown']:.0f} MB, {found['seconds']:.2f} s")
    assert found["grown"] < 150  # one of them unpacked takes 256 MB or more
    assert found["seconds"] < 20
