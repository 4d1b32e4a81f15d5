"""What a file is, told from its first bytes: no image library needed, no trust in its name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from unicodedata import normalize

from dreambooth.files import open_regular

HEADER_BYTES = 32
"""How much of a file `sniff` wants to see."""
MAX_BYTES = 1 << 30
"""Larger files are refused unread: 100 megapixels in 16 bit with transparency are 0.8 GB."""

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .jp2 .ppm .pgm .pnm .avif .heic"
    " .heif .mpo .jxl".split()
)
"""Names people give to pictures: a file named so that is no picture counts as broken."""

OPENERS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
"""Formats that Pillow reads with a package beside it: the module."""

_AS_PNG = "save it as PNG"
_UNREAD = {
    "JPEG XL": ((".jxl",), "pip install pillow-jxl-plugin, or save it as PNG"),
    "Photoshop": ((".psd", ".psb"), f"{_AS_PNG} with its layers merged"),
    "GIMP": ((".xcf",), "export it as PNG with its layers merged"),
    "Krita": ((".kra", ".ora"), "export it as PNG with its layers merged"),
    "Targa": ((".tga",), _AS_PNG),
    "OpenEXR": ((".exr",), _AS_PNG),
    "Radiance HDR": ((".hdr",), _AS_PNG),
    "DirectDraw": ((".dds",), _AS_PNG),
    "QOI": ((".qoi",), _AS_PNG),
    "PCX": ((".pcx",), _AS_PNG),
    "JPEG XR": ((".jxr", ".wdp"), _AS_PNG),
    "vector drawing": ((".svg", ".svgz", ".eps", ".ai"), "export it as PNG"),
}
"""Pictures that are not read: how their files are named, and what to do."""
_UNREAD_MAGIC = (
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DirectDraw"),
    (b"qoif", "QOI"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"%!PS-Adobe", "vector drawing"),
)

_RAW_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .nef .orf .pef .raf .rw2 .srw".split())
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\xff\x0a", "JXL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
    (b"P5", "PPM"),
    (b"P6", "PPM"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def as_compared(name: str) -> str:
    """Return a file's name as it is compared: a Mac may store é as e and an accent (NFD)."""
    return normalize("NFC", name)


def sniff(header: bytes) -> str | None:
    """Return the format (as Pillow names it) a file's first bytes announce; None for no image.

    What `OPENERS` names is one where its package is installed.
    """
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        return "WEBP"
    if header[4:8] == b"ftyp":
        brands = {header[i : i + 4] for i in (8, *range(16, len(header) - 3, 4))}
        if brands & _AVIF_BRANDS:
            return "AVIF"
        return "HEIF" if brands & _HEIF_BRANDS else None
    name = next((name for magic, name in _MAGIC if header.startswith(magic)), None)
    if name == "PPM" and not header[2:3].isspace():
        return None
    if name == "BMP" and header[6:10] != b"\0\0\0\0":  # two letters are no proof: text starts so
        return None
    return name


def unread(header: bytes, suffix: str) -> str | None:
    """Return why a picture of a format that is not read is left out; None for what is no picture.

    `header` are its first bytes, `suffix` is its name's ending, lower case: what has no bytes of
    its own to be known by (Targa) is known by its name.
    """
    kind = next((kind for magic, kind in _UNREAD_MAGIC if header.startswith(magic)), None)
    if kind is None and sniff(header) == "JXL":
        kind = "JPEG XL"
    if kind is None:
        kind = next((kind for kind, (names, _) in _UNREAD.items() if suffix in names), None)
    return None if kind is None else f"a picture that is not read ({kind}): {_UNREAD[kind][1]}"


def sniff_file(path: Path) -> str | None:
    """Return what `sniff` says of a file; raises `OSError` where it cannot be read."""
    with open_regular(path) as file:
        return sniff(file.read(HEADER_BYTES))


def _header(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(HEADER_BYTES)
    except OSError:
        return b""


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is the system's or an editor's, not the person's."""
    return name.startswith((".", "__MACOSX")) or name.lower() in _SYSTEM_NAMES


def is_camera_raw(path: Path) -> bool:
    """Say whether a file is named as a camera's raw file (inside, many look like a TIFF)."""
    return path.suffix.lower() in _RAW_SUFFIXES


def looks_like_image(path: Path) -> bool:
    """Say whether a file starts as an image does; a file that cannot be read does not."""
    if is_hidden(path.name) or is_camera_raw(path):
        return False
    try:
        kind = sniff_file(path)
        return kind is not None and (kind not in OPENERS or bool(find_spec(OPENERS[kind])))
    except OSError:  # reported with its reason by the scan
        return False


def why_no_image(path: Path, size: int) -> tuple[str, bool]:
    """Return why a file that `sniff` did not recognise is no image, and whether it should be one.

    `size` is the file's length in bytes. The flag is True for a file whose name promises a
    picture (a download that went wrong), False for files that just lie there.
    """
    suffix = path.suffix.lower()
    if is_hidden(path.name):
        return "a system or hidden file, not an image", False
    if size == 0:
        return "empty file", suffix in IMAGE_SUFFIXES
    if reason := unread(_header(path), suffix):
        return reason, True
    if suffix in IMAGE_SUFFIXES:
        return f"not an image, although it is named {suffix}", True
    return "not an image", False
