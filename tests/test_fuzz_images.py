"""Picture files spoilt at random: used, or quarantined with a reason; never an error, never a hang.

Real files of every format, their bytes flipped, cut, inserted and exchanged; PNG chunks dropped and
swapped with their checksums made right again, so that damage reaches the decoders.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import dreambooth
from dreambooth.engine.loop import run
from dreambooth.errors import JobError
from dreambooth.interfaces import Subject
from dreambooth_plugins.data import Folder
from spoiling import fuzz

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(dreambooth.__file__).parent / "cli/examples/fox/01.png"
SIDE = 32
SECONDS = 20.0
"""For a folder of small files: generous, since machines are busy; a hang takes longer."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def originals() -> list[tuple[str, bytes]]:
    """Return (suffix, bytes) of good pictures: every format, and what pictures carry along."""
    y, x = np.mgrid[0:40, 0:56]
    rgb = Image.fromarray(np.stack([y * 6, x * 4, (x + y) * 2], -1).astype(np.uint8))
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        ("jpg", encoded(rgb, "JPEG", quality=85)),
        ("jpg", encoded(rgb, "JPEG", progressive=True, exif=turned, icc_profile=profile)),
        ("jpg", encoded(rgb.convert("CMYK"), "JPEG")),
        ("jpg", encoded(rgb, "MPO", save_all=True, append_images=[rgb.resize((16, 16))])),
        ("png", EXAMPLE.read_bytes()),
        ("png", encoded(rgb.convert("RGBA"), "PNG", exif=turned)),
        ("png", encoded(rgb.convert("P"), "PNG", icc_profile=profile, transparency=0)),
        ("png", encoded(deep, "PNG")),
        ("gif", encoded(rgb, "GIF")),
        ("webp", encoded(rgb, "WEBP", exif=turned)),
        ("bmp", encoded(rgb, "BMP")),
        ("tif", encoded(rgb, "TIFF")),
        ("jp2", encoded(rgb, "JPEG2000")),
        ("ppm", encoded(rgb, "PPM")),
    ]


ORIGINALS = originals()
HEADS = [0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]
place = st.floats(0, 1, exclude_max=True)
edit = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("set"), place, st.sampled_from([0, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("cut"), place, st.just(0)),
    st.tuples(st.just("lose"), place, st.integers(1, 40)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("exchange"), place, place),
    st.tuples(st.just("head"), place, st.tuples(st.sampled_from("<>"), st.sampled_from(HEADS))),
    st.tuples(st.just("chunk"), place, place),
)


def spoil(data: bytes, edits: list[tuple[str, float, Any]]) -> bytes:
    """Change bytes; a head edit writes a number into the first 64, where sizes stand."""
    out = bytearray(data)
    for how, where, what in edits:
        at = int(where * len(out))
        if how == "flip" and out:
            out[at] ^= 1 << what
        elif how == "set" and out:
            out[at] = what
        elif how == "cut":
            del out[at:]
        elif how == "lose":
            del out[at : at + what]
        elif how == "insert":
            out[at:at] = what
        elif how == "exchange":
            other = int(what * len(out))
            out[at : at + 32], out[other : other + 32] = out[other : other + 32], out[at : at + 32]
        elif how == "head" and len(out) > 64:
            at = int(where * 60)
            out[at : at + 4] = struct.pack(f"{what[0]}I", what[1])
        elif how == "chunk" and out.startswith(b"\x89PNG\r\n\x1a\n"):
            out = swapped_chunks(out, where, what)
    return bytes(out)


def swapped_chunks(data: bytearray, where: float, other: float) -> bytearray:
    """Swap two chunks of a PNG (or drop one), and make all checksums right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append(bytes(data[at + 4 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    one, two = int(where * len(chunks)), int(other * len(chunks))
    if one == two:
        del chunks[one]
    else:
        chunks[one], chunks[two] = chunks[two], chunks[one]
    out = bytearray(data[:8])
    for body in chunks:
        out += struct.pack(">I", max(0, len(body) - 4)) + body + struct.pack(">I", zlib.crc32(body))
    return out


class Ctx:
    """As much of a context as a scan asks for."""

    class job:
        subject = Subject(identifier="ohwx", class_noun="dog")

    @staticmethod
    def warn(message: str) -> None:
        assert message


def none_is_usable(error: JobError, count: int) -> None:
    """Check what is said where not one file serves: each by name, with its reason."""
    head, *listed = error.message.splitlines()
    assert f"no usable picture among the {count} file" in head
    assert len(listed) == count
    assert all(len(line.split(": ", 1)[1]) > 5 for line in listed)


def use(folder: Path, count: int) -> Counter[str]:
    """Scan a folder of `count` files and load what is usable; count the outcomes."""
    began = time.monotonic()
    source = Folder(path=folder, resolution=SIDE)
    seen: Counter[str] = Counter()
    try:
        scan = source.scan(Ctx)
    except JobError as error:
        none_is_usable(error, count)
        return Counter(rejected=count)
    for item in scan.items:
        for variant in (0, None):
            sample = source.load(item, variant, np.random.default_rng(0))
            assert sample.pixels.shape == (SIDE, SIDE, 3)
            assert sample.pixels.dtype == np.uint8
        seen["used"] += 1
    for row in scan.rejected:
        assert len(row.reason) > 5
        seen["rejected"] += 1
    assert seen.total() == count
    assert time.monotonic() - began < SECONDS
    return seen


@pytest.fixture
def filled(tmp_path: Path) -> Callable[[list[tuple[str, bytes]]], Path]:
    """Return a function that makes a folder hold these files and no others."""
    folder = tmp_path / "pictures"
    folder.mkdir()

    def fill(files: list[tuple[str, bytes]]) -> Path:
        for old in folder.iterdir():
            old.unlink()
        for number, (suffix, data) in enumerate(files):
            (folder / f"{number}.{suffix}").write_bytes(data)
        return folder

    return fill


def test_the_originals_are_all_used(filled: Any) -> None:
    assert use(filled(ORIGINALS), len(ORIGINALS)) == {"used": len(ORIGINALS)}


@pytest.mark.parametrize("examples", [120, pytest.param(3000, marks=pytest.mark.slow)])
def test_spoilt_pictures_are_used_or_quarantined_with_a_reason(filled: Any, examples: int) -> None:
    seen: Counter[str] = Counter()
    spoilt = st.tuples(st.sampled_from(ORIGINALS), st.lists(edit, min_size=1, max_size=4))

    def check(drawn: list[tuple[tuple[str, bytes], list[tuple[str, float, Any]]]]) -> None:
        files = [(suffix, spoil(data, edits)) for (suffix, data), edits in drawn]
        seen.update(use(filled(files), len(files)))

    fuzz(examples, st.lists(spoilt, min_size=8, max_size=8), check=check)
    assert min(seen.values()) > examples // 2  # both ways are walked


@settings(
    deadline=None, max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    head=st.sampled_from([data[:12] for _, data in ORIGINALS]),
    rest=st.binary(max_size=300),
)
def test_a_good_beginning_with_anything_behind_it_is_no_error(
    filled: Any, head: bytes, rest: bytes
) -> None:
    use(filled([("png", head + rest), ("jpg", ORIGINALS[0][1])]), 2)


def sparse(file: Path, head: bytes = b"") -> None:
    """Write a file of 3 GiB that takes no room."""
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(3 << 30)


def test_what_is_no_file_is_neither_waited_for_nor_read_to_its_end(
    filled: Any, tmp_path: Path
) -> None:
    folder = filled([ORIGINALS[0]])
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "round.png").symlink_to("round.png")
    sparse(folder / "huge.png", EXAMPLE.read_bytes())
    began = time.monotonic()
    scan = Folder(path=folder, resolution=SIDE).scan(Ctx)
    assert list(Folder(path=folder).check(_job(), None)) == []
    assert time.monotonic() - began < SECONDS
    reasons = {row.id: row.reason for row in scan.rejected}
    assert [item.id for item in scan.items] == ["0.jpg"]
    assert reasons["pipe.png"] == reasons["zero.png"] == "cannot be read (not a regular file)"
    assert "links" in reasons["round.png"]
    assert "larger than 1024 MiB" in reasons["huge.png"]


def _job() -> Any:
    return dreambooth.Job(
        subject={"identifier": "ohwx", "class_noun": "dog"},
        data={"kind": "folder", "path": "."},
        model={"kind": "stable_diffusion", "source": "builtin:tiny"},
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: os.mkfifo(file), "not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "not a regular file"),
        (sparse, "larger than 64 MiB"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
    ],
    ids=["pipe", "device", "huge", "bytes"],
)
def test_a_caption_file_that_cannot_serve_is_named(filled: Any, make: Any, said: str) -> None:
    folder = filled([ORIGINALS[0]])
    make(folder / "0.txt")
    with pytest.raises(JobError, match=said) as caught:
        Folder(path=folder).scan(Ctx)
    assert "0.txt" in caught.value.message
    assert caught.value.hint


LINES = ['{"file_name": "0.jpg", "text": "ohwx dog"}', "[" * 100_000, "{" * 5, "1", '"0.jpg"',
         '{"file_name": "../../etc/passwd", "text": "x"}', '{"file_name": 1, "text": "x"}',
         '{"file_name": "0.jpg", "text": "\\ud800"}', '{"file_name": "\\udce9", "text": "x"}',
         '{"file_name": "0.jpg", "text": [1]}', "9" * 6000, '{"file_name": "0.jpg"}']  # fmt: skip


@settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(LINES), max_size=3), st.text(max_size=20))
def test_a_spoilt_metadata_file_is_read_or_refused_in_words(
    filled: Any, lines: list[str], more: str
) -> None:
    folder = filled([ORIGINALS[0]])
    (folder / "metadata.jsonl").write_text("\n".join([*lines, more]), encoding="utf-8")
    try:
        scan = Folder(path=folder).scan(Ctx)
    except JobError as error:
        refused_in_words(error)
        return
    (item,) = scan.items
    assert item.caption is None or item.caption.encode()


def refused_in_words(error: JobError) -> None:
    """Check that an error names the line and can be written down."""
    assert "metadata.jsonl" in error.message
    assert error.message.encode()
    assert error.hint


def test_odd_file_names_train_and_are_written_down(
    small_job: Any, pictures: Path, caplog: Any
) -> None:
    """Names that are no UTF-8 (as old disks hold them), or would steer a terminal."""
    names = [b"caf\xe9.png", b"a\nb.png", b"\x1b[31m.png", "\u202e.png".encode()]
    for name in names:
        shutil.copy(pictures / "1.png", os.path.join(os.fsencode(pictures), name))
    result = run(small_job(prior="none", train={"steps": 1}))
    recorded = json.loads((result.folder / "manifest.json").read_text(encoding="utf-8"))
    assert {os.fsencode(name) for name in recorded["images"]} >= set(names)
    log = (result.folder / "run.log").read_text(encoding="utf-8")
    assert "the same picture 5 times" in log
    assert "\x1b" not in log
    assert "\x1b" not in caplog.text
    caplog.text.encode()  # raises for what is no text
    assert run(small_job(prior="none", train={"steps": 1})).already_finished
