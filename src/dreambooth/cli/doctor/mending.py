"""`dbt doctor --fix`: files moved aside, never deleted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.cli.doctor.sidecars import masks_of
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from dreambooth.cli.doctor.remarks import Report

ASIDE = ".set-aside"
"""A hidden folder among the pictures: no scan looks into it."""


def set_aside(report: Report) -> list[tuple[Path, Path]]:
    """Move what is broken or there twice into `.set-aside`, its captions and masks with it.

    Returns (from, to) of each file. A file of that name that lies there already stays. Raises
    `RunError` where a file cannot be moved.
    """
    if report.folder is None:
        return []
    root = report.folder
    names = dict.fromkeys(name for remark in report.remarks for name in remark.aside)
    moved = []
    for name in names:
        path = root / name
        beside = [path, *(path.with_suffix(s) for s in (".txt", ".caption") if path.suffix != s)]
        beside += masks_of(path)
        for each in beside:
            if not (each.is_symlink() or each.is_file()) or root not in each.parents:
                continue
            dest = free(root / ASIDE / each.relative_to(root))
            try:
                dest.parent.mkdir(parents=True, exist_ok=True)
                each.rename(dest)
            except OSError as error:
                raise RunError(
                    f"cannot move {each} aside: {error.strerror or error}",
                    "check that the folder is writable; nothing was deleted",
                ) from error
            moved.append((each, dest))
    return moved


def free(path: Path) -> Path:
    """Return a path that is not taken: `a.jpg`, `a.1.jpg`, ..."""
    found, number = path, 0
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return found
