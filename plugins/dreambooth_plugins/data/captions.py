"""Captions beside pictures: `.txt` and `.caption` files, and `metadata.jsonl`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth.files import read_limited
from dreambooth.interfaces import unknown_placeholders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dreambooth.interfaces import Subject

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
    return name.lower().endswith((".txt", ".caption")) or name == METADATA


def collect(root: Path, kind: CaptionKind, images: list[str], others: list[str]) -> Captions:
    """Read the captions of `images` out of the caption files among `others`.

    Both are ids: paths relative to `root`, with forward slashes. Where several captions exist for
    one image, `.txt` goes before `.caption`, and that before `metadata.jsonl`. Raises `JobError`
    for a caption file that cannot be read.
    """
    found = Captions()
    empty: list[str] = []
    owners: dict[str, list[str]] = {}
    for image in images:
        owners.setdefault(_stem(image), []).append(image)
    for suffix in _SIDECARS.get(kind, ()):
        for name in (o for o in others if o.lower().endswith(suffix)):
            stem = _stem(name)
            if stem not in owners:
                found.unused.append((name, f"caption without a usable image named {stem}"))
                continue
            text = " ".join(_text(root / name).split())
            found.read.add(name)
            if text:
                _add(found, name, dict.fromkeys(owners[stem], text))
            else:
                empty.append(name)
    if kind in {"auto", "metadata"}:
        for name in (o for o in others if o.rpartition("/")[2] == METADATA):
            _read_metadata(root, name, set(images), found)
    if found.second:
        found.warnings.append(
            f"images with several captions train with the first; not used: {shorten(found.second)}"
        )
    if empty:
        found.warnings.append(f"empty caption files count as none: {shorten(empty)}")
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


def _text(path: Path) -> str:
    try:
        return read_limited(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text", "Save the captions as UTF-8.") from error
    except OSError as error:
        raise JobError(
            f"{path}: {error.strerror or error}", "Make it a text file that can be read."
        ) from error


def _read_metadata(root: Path, name: str, images: set[str], found: Captions) -> None:
    """Read one `metadata.jsonl`; its file names are relative to its own folder."""
    folder = name.rpartition("/")[0]
    for number, line in enumerate(_text(root / name).splitlines(), start=1):
        if not line.strip():
            continue
        image, text = _metadata_line(f"{root / name}:{number}", line)
        image = f"{folder}/{image}" if folder else image
        if image not in images:
            found.unused.append(
                (f"{name}:{number}", f"caption without a usable image named {image}")
            )
        elif text:
            _add(found, f"{name}:{number}", {image: text})
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


def names_subject(prompt: str, subject: Subject) -> bool:
    """Say whether a filled prompt holds the identifier as a word of its own."""
    word = re.escape(subject.identifier.casefold())
    return re.search(rf"(?<!\w){word}(?!\w)", prompt.casefold()) is not None


def judge(captions: Mapping[str, str], images: list[str], subject: Subject) -> list[str]:
    """Return warnings about what captions say, or leave out."""
    messages: list[str] = []
    without = [i for i in images if i not in captions]
    if captions and without:
        messages.append(
            f"{len(without)} of {len(images)} images have no caption and train with data.prompt: "
            + shorten(without)
        )
    silent = [i for i, text in captions.items() if not names_subject(subject.fill(text), subject)]
    if silent:
        messages.append(
            f"{len(silent)} of {len(captions)} captions do not name {subject.identifier!r}, so the "
            f"identifier learns nothing from them: {shorten(silent)}"
        )
    odd = [i for i, text in captions.items() if unknown_placeholders(text)]
    if odd:
        messages.append(
            "captions with a {placeholder} that nothing fills in (only {identifier} and "
            f"{{class_noun}} are): {shorten(odd)}"
        )
    return messages


def shorten(names: Iterable[str], limit: int = 5) -> str:
    """Join the first few names, and say how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
