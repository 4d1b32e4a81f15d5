"""Captions beside pictures: `.txt` and `.caption` files, and `metadata.jsonl`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth.files import read_limited
from dreambooth_plugins.data.encodings import AUTO, NotReadable, read_text
from dreambooth_plugins.data.file_types import as_compared

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CaptionKind = Literal["auto", "none", "txt", "caption", "metadata"]
METADATA = "metadata.jsonl"
MAX_BYTES = 64 << 20
"""Larger caption files are refused unread."""
CAPTION_KEYS = ("text", "caption", "prompt")
_SIDECARS: Mapping[CaptionKind, tuple[str, ...]] = {
    "auto": (".txt", ".caption"),
    "txt": (".txt",),
    "caption": (".caption",),
}


@dataclass
class Captions:
    """What was found: captions by image id, and what to tell the person."""

    by_id: dict[str, str] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)
    """(file, or `metadata.jsonl:line`; reason)."""
    read: set[str] = field(default_factory=set)
    """Files that served as captions."""
    second: list[str] = field(default_factory=list)
    """Sources that came too late: their image had a caption already."""
    warnings: list[str] = field(default_factory=list)


def is_caption_file(name: str) -> bool:
    """Say whether a file is named as one that may hold captions."""
    return name.lower().endswith((".txt", ".caption")) or name.lower() == METADATA


def collect(
    root: Path,
    kind: CaptionKind,
    images: list[str],
    others: list[str],
    encoding: str = AUTO,
) -> Captions:
    """Read the captions of `images` out of the caption files among `others`.

    Both are ids: paths relative to `root`, with forward slashes; names that differ only in how
    their accents are stored are equal. Where several captions exist for one image, `.txt` goes
    before `.caption`, and that before `metadata.jsonl`. Raises `JobError` for caption files that
    cannot be read: all that are in another encoding at once.
    """
    found = Captions()
    texts = _Texts(root, encoding)
    _read_sidecars(kind, images, others, texts, found)
    if kind in {"auto", "metadata"}:
        by_name: dict[str, list[str]] = {}
        for image in images:
            by_name.setdefault(as_compared(image), []).append(image)
        for name in (o for o in others if o.rpartition("/")[2].lower() == METADATA):
            _read_metadata(name, by_name, texts, found)
    texts.complain()
    if found.second:
        found.warnings.append(
            f"images with several captions train with the first; not used: {shorten(found.second)}"
        )
    return found


class _Texts:
    """The caption files of a folder, read; those in another encoding are told together."""

    def __init__(self, root: Path, encoding: str) -> None:
        self.root, self.encoding = root, encoding
        self.odd: dict[str, str] = {}
        """Files that could not be read, and the encoding they may be in."""

    def read(self, name: str) -> str:
        """Return a file's text; empty for one that `complain` will tell of."""
        try:
            return read_text(read_limited(self.root / name, MAX_BYTES), self.encoding)
        except NotReadable as error:
            self.odd[name] = error.guess
            return ""
        except OSError as error:
            raise JobError(
                f"{self.root / name}: {error.strerror or error}",
                "Make it a text file that can be read.",
            ) from error

    def complain(self) -> None:
        """Raise `JobError` where files could not be read."""
        if not self.odd:
            return
        guess = next(iter(self.odd.values()))
        listed = ", ".join(f"{name} (perhaps {other})" for name, other in self.odd.items())
        tried = "" if self.encoding == AUTO else f" or {self.encoding}"
        raise JobError(
            f"caption files in {self.root} that are not UTF-8{tried}: {listed}",
            f"Set data.caption_encoding: {guess} if that is what they are, or save them as UTF-8 "
            f"(iconv -f {guess} -t utf-8 OLD > NEW).",
        )


def _read_sidecars(
    kind: CaptionKind, images: list[str], others: list[str], texts: _Texts, found: Captions
) -> None:
    """Read `01.txt` and `01.caption` (or `01.jpg.txt`) of `01.jpg`."""
    owners: dict[str, list[str]] = {}
    for image in images:
        owners.setdefault(as_compared(_stem(image)), []).append(image)
    for image in images:
        owners.setdefault(as_compared(image), []).append(image)
    empty, several = [], []
    for suffix in _SIDECARS.get(kind, ()):
        for name in (o for o in others if o.lower().endswith(suffix)):
            stem = _stem(name)
            if as_compared(stem) not in owners:
                found.unused.append((name, f"caption without a usable image named {stem}"))
                continue
            lines = [" ".join(line.split()) for line in texts.read(name).splitlines()]
            lines = [line for line in lines if line]
            found.read.add(name)
            if lines:
                _add(found, name, dict.fromkeys(owners[as_compared(stem)], " ".join(lines)))
            elif name not in texts.odd:
                empty.append(name)
            several += [name] if len(lines) > 1 else []
    if empty:
        found.warnings.append(f"empty caption files count as none: {shorten(empty)}")
    if several:
        found.warnings.append(f"captions of several lines are read as one: {shorten(several)}")


WRITE = (
    "captions are read from 01.txt or 01.caption beside 01.jpg, and from metadata.jsonl "
    '({"file_name": "01.jpg", "text": "..."} a line)'
)
_TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
_BESIDE = (".json", ".cap", ".tags", ".tag", ".md", ".yaml", ".yml")


def unread(names: Iterable[str], images: Iterable[str]) -> dict[str, str]:
    """Return the files that seem to hold captions but are not read, each with what it may be."""
    stems = {as_compared(part) for image in images for part in (image, _stem(image))}
    found = {}
    for name in names:
        low = name.lower()
        if low.endswith(_BESIDE) and as_compared(_stem(name)) in stems:
            found[name] = "perhaps a picture's caption, not read"
        elif low.endswith(_TABLES):
            found[name] = "perhaps a table of captions, not read"
    return found


def _stem(name: str) -> str:
    """Return a relative path without its suffix."""
    folder, _, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return f"{folder}/{stem}" if folder else stem


def _add(found: Captions, source: str, captions: Mapping[str, str]) -> None:
    for image, text in captions.items():
        if image in found.by_id:
            found.second.append(source)
        else:
            found.by_id[image] = text


def _read_metadata(
    name: str, by_name: Mapping[str, list[str]], texts: _Texts, found: Captions
) -> None:
    """Read one `metadata.jsonl`; its file names are relative to its own folder."""
    folder = name.rpartition("/")[0]
    # At line breaks of files alone: U+2028, U+0085 and their like may stand inside a JSON text.
    for number, line in enumerate(re.split("\r\n|\n|\r", texts.read(name)), start=1):
        if not line.strip():
            continue
        image, text = _metadata_line(f"{texts.root / name}:{number}", line)
        image = f"{folder}/{image}" if folder else image
        meant = by_name.get(as_compared(image))
        if meant is None:
            found.unused.append(
                (f"{name}:{number}", f"caption without a usable image named {image}")
            )
        elif text:
            _add(found, f"{name}:{number}", dict.fromkeys(meant, text))
    found.read.add(name)


def _metadata_line(where: str, line: str) -> tuple[str, str]:
    hint = 'A line reads {"file_name": "01.jpg", "text": "a photo of ..."}.'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: not JSON ({error})", hint) from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise JobError(f"{where}: no file_name", hint)
    texts = [row[key] for key in CAPTION_KEYS if key in row]
    if not texts or not isinstance(texts[0], str):
        raise JobError(f"{where}: no caption (text, caption or prompt)", hint)
    if re.search("[\ud800-\udfff]", row["file_name"] + texts[0]):
        raise JobError(f"{where}: half a character (\\ud800 to \\udfff)", hint)
    return row["file_name"].replace("\\", "/").removeprefix("./"), " ".join(texts[0].split())


def shorten(names: Iterable[str], limit: int = 5) -> str:
    """Join the first few names, and say how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
