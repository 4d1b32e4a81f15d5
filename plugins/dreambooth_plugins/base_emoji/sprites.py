"""The drawings: read from two npm packages, by name and pinned version."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth.errors import RunError
from dreambooth_plugins.base_emoji.nouns import NOUNS

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "16.0.0"
VENDORS = {"google": "Noto Color Emoji, Apache-2.0", "twitter": "Twemoji, CC-BY 4.0"}
SIZE = 64


@dataclass(frozen=True, eq=False)
class Sprite:
    """One drawing: 64 x 64 RGBA with premultiplied alpha (`RGBa`)."""

    noun: str
    name: str
    """The emoji's own, longer name (`guide dog`)."""
    vendor: str
    picture: Image.Image


def fetch(package: str, version: str, folder: Path) -> Path:
    """Return a package's archive in `folder`, fetched with `npm pack` if it is not there.

    Raises:
        RunError: npm is missing or could not fetch the package.
    """
    archive = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if archive.is_file():
        return archive
    hint = f"Put {archive.name} into {folder}, or install npm and run again."
    npm = shutil.which("npm")
    if npm is None:
        raise RunError(f"{archive} is missing and npm is not installed", hint)
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"{package}@{version}", "--silent"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not archive.is_file():
        raise RunError(f"npm pack {package}@{version} failed: {done.stderr.strip()[-300:]}", hint)
    return archive


def open_vendor(vendor: str, folder: Path) -> tarfile.TarFile:
    """Open the archive of one of `VENDORS`."""
    return tarfile.open(fetch(f"emoji-datasource-{vendor}", VERSION, folder))


def long_name(name: str, noun: str) -> str:
    """Return the emoji's name in lower case without what only tells emoji apart."""
    words = [w for w in name.lower().split() if w not in {"face", "symbol", "oncoming"}]
    return " ".join(words) or noun


def read_sprites(folder: Path) -> list[Sprite]:
    """Return every drawing of every class noun, ordered by noun, code point and vendor."""
    wanted = {code: noun for noun, codes in NOUNS.items() for code in codes}
    found: list[Sprite] = []
    for vendor in VENDORS:
        with open_vendor(vendor, folder) as archive:
            table = archive.extractfile("package/emoji.json")
            entries = json.load(table) if table else []
            images = {e["image"]: e for e in entries if e["unified"] in wanted}
            prefix = f"package/img/{vendor}/{SIZE}/"
            for member in archive:
                entry = images.get(member.name.removeprefix(prefix))
                if entry is None or not member.name.startswith(prefix):
                    continue
                data = archive.extractfile(member)
                picture = Image.open(BytesIO(data.read() if data else b"")).convert("RGBA")
                noun = wanted[entry["unified"]]
                name = long_name(entry["name"], noun)
                found.append(Sprite(noun, name, vendor, picture.convert("RGBa")))
    order = {noun: i for i, noun in enumerate(NOUNS)}
    found.sort(key=lambda s: (order[s.noun], s.name, s.vendor))
    if len({s.noun for s in found}) != len(NOUNS):
        missing = sorted(set(NOUNS) - {s.noun for s in found})
        raise RunError(f"no drawing for {', '.join(missing)} in {folder}", "Fetch the packages.")
    return found
