"""The page and the pictures it shows in their full size, as one zip."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from dreambooth.files import MAX_JSON, read_limited, write_with
from dreambooth_plugins.report.pictures.strip import read_sets

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.report.document import Report


def write_zip(dest: Path, page: Path, runs: list[Path], report: Report) -> None:
    """Write a page with every sample picture of its runs to `dest`, whole or not at all."""

    def write(beside: Path) -> None:
        # PNGs do not shrink any more.
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            archive.write(page, page.name)
            for path, run in zip(runs, report.runs, strict=True):
                for step, cells in read_sets(path.absolute()).files.items():
                    for file in cells.values():
                        if not file.is_symlink():
                            name = f"{run.name}/step-{step:06d}/{file.name}"
                            archive.writestr(name, read_limited(file, 2 * MAX_JSON))

    write_with(dest, write)
