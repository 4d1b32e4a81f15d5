"""Print the tests that mirror a source file, for `make check FILE=...`.

A test file's name begins with `test_` and holds the source's name; where none does, the folder's
tests are meant, and where there is no such folder, none.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MIRRORS = {"src/dreambooth": "tests/unit", "plugins/dreambooth_plugins": "tests/plugins"}
"""Where the tests of a package's folders lie."""


def mirrored(file: Path) -> list[Path]:
    """Return the tests of a file, relative to the repository's root; a test is its own."""
    path = file.resolve().relative_to(ROOT)
    if path.parts[0] == "tests":
        return [path]
    for sources, tests in MIRRORS.items():
        if path.is_relative_to(sources):
            inside = path.relative_to(sources)
            folder = next(
                (ROOT / tests / p for p in inside.parents if (ROOT / tests / p).is_dir()), ROOT
            )
            if folder in (ROOT, ROOT / tests):
                return []
            named = sorted(folder.rglob(f"test_*{inside.stem}*.py"))
            return [found.relative_to(ROOT) for found in named or [folder]]
    return []


if __name__ == "__main__":
    print(*mirrored(Path(sys.argv[1])))
