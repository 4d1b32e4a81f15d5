"""Decoding: each mode and depth against an independent computation, and hostile bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_plugins.data import images
from dreambooth_plugins.data.file_types import sniff
from dreambooth_plugins.data.images import ImageRejected, decode


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, top, shape).astype(dtype)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 3, x * 3, (x + y) * 2], -1).clip(0, 255).astype(np.uint8)


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png16(values: np.ndarray, colour_type: int) -> bytes:
    """Write a 16-bit PNG by hand: Pillow cannot write deep colour."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_rgb_png_is_kept_to_the_bit() -> None:
    values = noise(9, 13, 3)
    assert (pixels(encoded(Image.fromarray(values))) == values).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000"])
def test_grey_becomes_three_equal_channels_in_every_format(kind: str) -> None:
    values = noise(8, 8)
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(values)
    got = pixels(encoded(image.convert("RGB") if kind == "WEBP" else image, kind, **options))
    assert (got == values[..., None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    values = noise(6, 10, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_seen = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).transpose(1, 0, 2),
        8: np.rot90(values, 1),
    }[orientation]
    assert (pixels(encoded(Image.fromarray(values), exif=exif.tobytes())) == as_seen).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "AVIF"])
def test_orientation_is_applied_once_in_every_format_that_has_it(kind: str) -> None:
    values = np.zeros((32, 64, 3), np.uint8)
    values[:, 32:] = 255  # white on the right: turned clockwise, at the bottom
    exif = Image.Exif()
    exif[0x0112] = 6
    got = pixels(encoded(Image.fromarray(values), kind, exif=exif))
    assert got.shape == (64, 32, 3)
    assert got[:24].max() < 20
    assert got[40:].min() > 235


def test_transparency_lies_over_white() -> None:
    rgba = noise(12, 12, 4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    got = pixels(encoded(Image.fromarray(rgba)))
    assert np.abs(got - expected).max() <= 1
    assert (got[0] == 255).all()
    assert (got[1] == rgba[1, :, :3]).all()


def test_grey_with_alpha_lies_over_white() -> None:
    values = noise(6, 6, 2)
    alpha = values[..., 1] / 255
    expected = (values[..., 0] * alpha + 255 * (1 - alpha))[..., None]
    assert np.abs(pixels(encoded(Image.fromarray(values, "LA"))) - expected).max() <= 1


def test_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        got = pixels(encoded(image, kind, transparency=0))
        assert got.tolist() == [[[255, 255, 255], [200, 100, 50]]]
    # one alpha value for each entry
    got = pixels(encoded(image, "PNG", transparency=bytes([255, 51])))
    assert np.abs(got[0, 1] - (np.array([200, 100, 50]) * 0.2 + 255 * 0.8)).max() <= 1
    assert got[0, 0].tolist() == [10, 20, 30]


def test_transparent_colour_of_an_rgb_or_grey_png() -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    got = pixels(encoded(rgb, transparency=(1, 2, 3)))
    assert got.tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = Image.fromarray(np.array([[9, 40]], np.uint8))
    assert pixels(encoded(grey, transparency=9)).tolist() == [[[255] * 3, [40] * 3]]


def test_one_bit_images() -> None:
    values = noise(5, 9, top=2).astype(bool)
    assert (pixels(encoded(Image.fromarray(values))) == values[..., None] * 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    values = noise(16, 16, top=65536, dtype=np.uint16)
    expected = np.rint(values / 257.0)[..., None]
    assert (pixels(encoded(Image.fromarray(values), kind)) == expected).all()


def test_dark_sixteen_bit_grey_stays_dark() -> None:
    values = np.full((4, 4), 200, np.uint16)
    assert pixels(encoded(Image.fromarray(values))).max() == 1


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (4, 6), (2, 4)])
def test_sixteen_bit_colour_is_scaled(channels: int, colour_type: int) -> None:
    values = noise(8, 8, channels, top=65536, dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535
    colour = values if channels == 3 else values[..., :-1]
    got = pixels(png16(values, colour_type))
    assert np.abs(got - colour / 257.0).max() <= 1


def test_integer_and_float_tiffs_are_scaled_by_their_range() -> None:
    ints = noise(6, 6, top=65536, dtype=np.int32)
    ints[0, 0] = 65535
    assert (pixels(encoded(Image.fromarray(ints), "TIFF")) == np.rint(ints / 257)[..., None]).all()
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    got = pixels(encoded(Image.fromarray(unit), "TIFF"))
    assert np.abs(got[..., 0] - unit * 255).max() <= 0.501
    eight = np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8)
    assert np.abs(pixels(encoded(Image.fromarray(eight), "TIFF"))[..., 0] - eight).max() <= 0.501


@pytest.mark.parametrize("values", [[[-1.0, 2.0]], [[float("nan"), 0.0]], [[1e9, 0.0]]])
def test_grey_values_without_a_meaning_are_rejected(values: list[list[float]]) -> None:
    data = encoded(Image.fromarray(np.array(values, np.float32)), "TIFF")
    with pytest.raises(ImageRejected, match="grey values"):
        decode(data)


def test_cmyk_jpeg_shows_the_colours_meant() -> None:
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:16, :, 1:3] = 255  # magenta and yellow: red
    ink[16:, :, 3] = 128  # half black: grey
    got = pixels(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95))
    assert np.abs(got[4, 4] - [255, 0, 0]).max() < 6
    assert np.abs(got[28, 28] - [127, 127, 127]).max() < 6


def test_srgb_profile_leaves_pixels_alone_and_another_is_converted() -> None:
    values = noise(8, 8, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert (pixels(encoded(Image.fromarray(values), icc_profile=srgb.tobytes())) == values).all()
    # sRGB with red and green exchanged: the profile's tags swapped by name
    swapped = bytearray(srgb.tobytes())
    red, green = swapped.find(b"rXYZ"), swapped.find(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    still_named_srgb = encoded(Image.fromarray(values), icc_profile=bytes(swapped))
    assert (pixels(still_named_srgb) == values).all()
    swapped = swapped.replace(b"s\0R\0G\0B", b"s\0W\0A\0P")
    got = pixels(encoded(Image.fromarray(values), icc_profile=bytes(swapped)))
    assert np.abs(got - values[..., [1, 0, 2]]).max() <= 4


def test_a_damaged_profile_is_no_reason_to_refuse() -> None:
    values = noise(8, 8, 3)
    assert (pixels(encoded(Image.fromarray(values), icc_profile=b"nonsense" * 40)) == values).all()


def swapped(space: str = "RGB") -> bytes:
    """Return a profile whose red is green and whose green is red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile.replace(b"s\0R\0G\0B", b"s\0W\0A\0P"))


def linear_grey() -> bytes:
    """Return a grey profile by hand: numbers are proportional to light."""
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    tags = {
        b"wtpt": white,
        b"kTRC": b"curv" + bytes(8),  # no points: the identity
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none",
    }
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytes(4) + b"\x02\x40\0\0" + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    whole = head + bytes(124 - len(head)) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "PA"])
def test_a_colour_profile_is_used_in_every_mode_of_colours(mode: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 10, 200, 20])
    image.putpixel((1, 0), 1)
    options: dict[str, object] = {"icc_profile": swapped()}
    if mode == "PA":
        options["transparency"] = bytes([255, 0])
    elif mode != "P":
        image = image.convert(mode)
    got = pixels(encoded(image, **options))[0]
    assert np.abs(got[0] - [10, 200, 20]).max() <= 4
    assert np.abs(got[1] - ([255] * 3 if mode == "PA" else [200, 10, 20])).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1", "transparent"])
def test_a_grey_profile_is_used_in_every_grey_mode(mode: str) -> None:
    values = np.array([[0, 55, 128, 255]], np.uint8)
    light = values / 255.0
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    image = Image.fromarray(values)
    options: dict[str, object] = {"icc_profile": linear_grey()}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "1":
        image, expected = image.convert("1", dither=0), np.array([[0, 0, 255, 255]])
    elif mode == "transparent":
        options["transparency"], expected[0, 1] = 55, 255
    got = pixels(encoded(image, **options))
    assert np.abs(got - expected[..., None]).max() <= 2


def test_a_grey_picture_may_carry_the_profile_of_the_coloured_one_it_was() -> None:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gamma = bytearray(data.replace(b"s\0R\0G\0B", b"o\0t\0h\0e"))
    values = noise(8, 8)
    got = pixels(encoded(Image.fromarray(values), icc_profile=bytes(gamma)))
    assert np.abs(got - values[..., None]).max() <= 1  # sRGB's own curves: greys stay
    got = pixels(encoded(Image.fromarray(noise(8, 8, 3)), icc_profile=linear_grey()))
    assert (got == noise(8, 8, 3)).all()  # a grey profile says nothing about colours


def test_lab_is_turned_into_colours() -> None:
    lab = Image.fromarray(np.array([[[255, 0, 0], [136, 80, 67]]], np.uint8), "LAB")
    got = pixels(encoded(lab, "TIFF"))[0]
    assert np.abs(got[0] - 255).max() <= 2
    assert got[1].tolist() == pytest.approx([255, 0, 0], abs=12)  # L 53, a 80, b 67


def chunk(name: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + crc


LONG = zlib.compress(bytes(3 << 20))
LONG_TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "plain tEXt": chunk(b"tEXt", b"prompt\0" + b"x" * (3 << 20)),
    "plain iTXt": chunk(b"iTXt", b"prompt\0\0\0en\0\0" + b"x" * (3 << 20)),
    "many": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20))) * 80,
    "endless profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(40 << 20), 9)),
    "damaged text": chunk(b"zTXt", b"k\0\0" + b"not deflated"),
    "damaged profile": chunk(b"iCCP", b"p\0\0" + b"not deflated"),
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_texts_of_any_length_leave_the_picture_whole(kind: str, place: str) -> None:
    values = noise(9, 13, 3)
    plain = encoded(Image.fromarray(values))
    at = plain.index({"before": b"IDAT", "after": b"IEND"}[place]) - 4
    assert (pixels(plain[:at] + LONG_TEXTS[kind] + plain[at:]) == values).all()


def test_a_long_profile_is_used_as_a_short_one_is() -> None:
    image = Image.fromarray(noise(8, 8, 3))
    short = pixels(encoded(image, icc_profile=swapped()))
    long = swapped() + bytes(2 << 20)
    long = struct.pack(">I", len(long)) + long[4:]
    assert (pixels(encoded(image, icc_profile=long)) == short).all()
    assert np.abs(short - noise(8, 8, 3)).max() > 50


def test_orientation_in_a_short_text_still_counts() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    plain = encoded(Image.fromarray(noise(6, 10, 3)))
    at = plain.index(b"IDAT") - 4
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert pixels(plain[:at] + text + plain[at:]).shape == (10, 6, 3)


@pytest.mark.parametrize(("kind", "word"), [("GIF", "animated"), ("WEBP", "animated"),
                                            ("PNG", "animated"), ("TIFF", "pages")])  # fmt: skip
def test_several_frames_are_rejected_with_the_reason(kind: str, word: str) -> None:
    frames = [Image.fromarray(noise(8, 8, 3) // (k + 1)) for k in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageRejected, match=f"{word}.*") as caught:
        decode(data)
    assert "3" in str(caught.value)


def test_a_still_of_an_animating_format_is_fine() -> None:
    for kind in ("GIF", "WEBP", "PNG"):
        assert decode(encoded(Image.new("RGB", (8, 8)), kind)).size == (8, 8)


def test_a_camera_picture_with_previews_beside_it_is_one_picture() -> None:
    main, preview = Image.fromarray(smooth(32, 32)), Image.new("RGB", (16, 16))
    data = encoded(main, "MPO", save_all=True, append_images=[preview])
    assert decode(data).size == (32, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_rejected(kind: str) -> None:
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    for keep in (0.5, 0.9):
        with pytest.raises(ImageRejected, match=r"truncated|damaged"):
            decode(data[: int(len(data) * keep)])


def test_a_decompression_bomb_is_refused_unpacked() -> None:
    data = bytearray(encoded(Image.new("1", (8, 8))))
    for side, reason in ((10_001, "too large"), (60_000, "too large")):
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with pytest.raises(ImageRejected, match=reason):
            decode(bytes(data))


def test_too_narrow_pictures_are_refused() -> None:
    with pytest.raises(ImageRejected, match="too narrow"):
        decode(encoded(Image.new("RGB", (400, 8))))


def test_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_opener", lambda kind: False)
    with pytest.raises(ImageRejected, match="pip install pillow-heif"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))


def test_avif_is_read_where_pillow_can() -> None:
    data = encoded(Image.new("RGB", (32, 32), (200, 30, 30)), "AVIF", quality=90)
    assert sniff(data[:32]) == "AVIF"
    assert np.abs(pixels(data)[16, 16] - [200, 30, 30]).max() < 8


def test_avif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.features, "check", lambda name: False)
    with pytest.raises(ImageRejected, match="pip install"):
        decode(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(64))


def test_only_the_announced_decoder_is_tried() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    with pytest.raises(ImageRejected, match="a picture that is not read"):
        decode(postscript)
    with pytest.raises(ImageRejected, match="not an image"):
        decode(b"PK" + bytes(60))
