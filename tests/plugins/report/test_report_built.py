"""The committed script and styles are what their source builds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dreambooth_plugins.report.page import STATIC
from tools import PAGE


@pytest.mark.node
def test_the_committed_page_is_what_its_source_builds(tmp_path: Path) -> None:
    bins = PAGE / "node_modules" / ".bin"
    subprocess.run([bins / "tsc", "--noEmit"], cwd=PAGE, check=True, timeout=120)
    env = {**os.environ, "OUT": str(tmp_path)}
    subprocess.run([bins / "vite", "build"], cwd=PAGE, check=True, env=env, timeout=120)
    for name in ("page.js", "page.css"):
        assert (tmp_path / name).read_bytes() == (STATIC / name).read_bytes(), (
            f"{name} is not what its source builds: npm run build in plugins/report_page"
        )
