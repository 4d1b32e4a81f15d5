"""The drawings: six permissive sets of the npm package `@iconify/json`, rendered at one size."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreambooth.errors import RunError
from emoji_recipe.nouns import EXCEPT, NOUNS, SUBJECTS

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE, VERSION = "@iconify/json", "2.2.535"
SETS: dict[str, str] = {
    "noto": "Noto Emoji, Google Inc, Apache-2.0",
    "noto-v1": "Noto Emoji (v1), Google Inc, Apache-2.0",
    "twemoji": "Twitter Emoji, Twitter and contributors, CC-BY 4.0",
    "emojione": "Emoji One (Colored), Emoji One, CC-BY 4.0",
    "fxemoji": "Firefox OS Emoji, Mozilla, Apache-2.0",
    "streamline-emojis": "Streamline Emojis, Streamline, CC-BY 4.0",
}
"""Sets the base is trained on, with author and licence. Share-alike sets are left out."""
SUBJECT_SET = "fluent-emoji"
"""Fluent Emoji (Microsoft, MIT): designs of the held-out subjects, never trained on."""
EDGE = 144
"""Edge in pixels that drawings are rendered at: a little over the largest they are pasted."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """One drawing: [EDGE, EDGE] RGBA with premultiplied alpha (`RGBa`)."""

    noun: str
    name: str
    """Its own name in its set (`guide-dog`)."""
    set: str
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


@cache
def read_sets(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the sets' files (icons, aliases, size) by the set's name, the subjects' set too."""
    wanted = {f"package/json/{name}.json": name for name in (*SETS, SUBJECT_SET)}
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(fetch(PACKAGE, VERSION, folder)) as archive:
        for member in archive:
            if member.name in wanted and (file := archive.extractfile(member)):
                found[wanted[member.name]] = json.load(file)
    if len(found) != len(wanted):
        missing = ", ".join(sorted(set(wanted.values()) - set(found)))
        raise RunError(f"{PACKAGE} lacks the sets {missing}", f"Version {VERSION} has them.")
    return found


def icon(values: dict[str, Any], name: str) -> tuple[str, str] | None:
    """Return (own name, SVG text) of an icon of a set, through its aliases; None: not there."""
    aliases = values.get("aliases", {})
    while name in aliases:
        name = aliases[name]["parent"]
    body = values["icons"].get(name)
    if body is None:
        return None
    left, top = body.get("left", 0), body.get("top", 0)
    width = body.get("width", values.get("width", 16))
    height = body.get("height", values.get("height", 16))
    return name, (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body["body"]}</svg>'
    )


def render(svg: str, edge: int) -> Image.Image:
    """Return an SVG drawing as [edge, edge] `RGBa`, at the scale of its own box."""
    import resvg_py

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=edge, height=edge))
    return Image.open(BytesIO(data)).convert("RGBA").convert("RGBa")


@cache
def read_drawings(folder: Path) -> tuple[Drawing, ...]:
    """Return every drawing of every class noun, ordered by noun, set and name; no icon twice.

    Raises:
        RunError: a noun has no drawing.
    """
    sets = read_sets(folder)
    found: list[Drawing] = []
    for noun, names in NOUNS.items():
        taken = set(EXCEPT)
        for set_name in SETS:
            for name in names.split():
                hit = icon(sets[set_name], name)
                if hit and (set_name, hit[0]) not in taken:
                    taken.add((set_name, hit[0]))
                    found.append(Drawing(noun, hit[0], set_name, trimmed(render(hit[1], EDGE))))
        if taken == EXCEPT:
            raise RunError(f"no drawing for {noun!r} in {PACKAGE}", f"Version {VERSION} has them.")
    return tuple(found)


def trimmed(picture: Image.Image) -> Image.Image:
    """Return the drawing scaled so that its longer side fills the square, centred.

    Sets leave different margins: sizes of compositions are those of what is drawn.
    """
    box = picture.getchannel("a").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if box is None:
        return picture
    edge = max(box[2] - box[0], box[3] - box[1])
    cut = picture.crop(box)
    scale = picture.width / edge
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    made = Image.new("RGBa", picture.size)
    place = ((picture.width - size[0]) // 2, (picture.height - size[1]) // 2)
    made.paste(cut.resize(size, Image.Resampling.LANCZOS), place)
    return made


def subject(folder: Path, noun: str) -> Image.Image:
    """Return the held-out subject's drawing, Fluent's flat-shaded design, as `RGBa`."""
    hit = icon(read_sets(folder)[SUBJECT_SET], SUBJECTS[noun])
    if hit is None:
        raise RunError(f"{PACKAGE} has no {SUBJECTS[noun]} in {SUBJECT_SET}", "Another version?")
    return trimmed(render(hit[1], 256))
