"""An archive laid out like the npm package of drawings, with a plain shape for every icon."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

from emoji_recipe.drawings import PACKAGE, SETS, SUBJECT_SET, VERSION
from emoji_recipe.nouns import NOUNS, SUBJECTS

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = (
    '<circle cx="16" cy="16" r="11" fill="{}"/>',
    '<rect x="6" y="3" width="20" height="26" fill="{}"/>',
    '<path d="M16 3 L29 29 H3 Z" fill="{}"/>',
)


def write_package(folder: Path) -> None:
    """Write `folder/iconify-json-<version>.tgz`: two sets with every name, the others with one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for group in NOUNS.values() for name in group.split()]
    archive = f"{PACKAGE.removeprefix('@').replace('/', '-')}-{VERSION}.tgz"
    with tarfile.open(folder / archive, "w:gz") as tar:
        for number, name in enumerate((*SETS, SUBJECT_SET)):
            shown = list(SUBJECTS.values()) if name == SUBJECT_SET else names
            shown = shown if number < 2 or name == SUBJECT_SET else [*names[:1]]
            data = json.dumps(icon_set(shown, number)).encode()
            info = tarfile.TarInfo(f"package/json/{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def icon_set(names: list[str], shift: int) -> dict[str, object]:
    """Return a set in Iconify's layout; `dog-face` is an alias of `dog` where both are there."""
    icons = {
        name: {
            "body": SHAPES[(place + shift) % 3].format(
                f"#{(place * 2654435761 + shift * 40503) % 0xFFFFFF:06x}"
            )
        }
        for place, name in enumerate(dict.fromkeys(names))
    }
    aliases = {}
    if "dog-face" in icons and "dog" in icons:
        del icons["dog-face"]
        aliases["dog-face"] = {"parent": "dog"}
    return {"icons": icons, "aliases": aliases, "width": 32, "height": 32}
