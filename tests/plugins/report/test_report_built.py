"""The committed script and styles are what their source builds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dreambooth_plugins.report.page import STATIC

SOURCE = Path(__file__).parents[3] / "plugins" / "report_page"


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.skipif(
    not (SOURCE / "node_modules").is_dir(), reason="run npm ci in plugins/report_page first"
)
def test_the_committed_page_is_what_its_source_builds(tmp_path: Path) -> None:
    bins = SOURCE / "node_modules" / ".bin"
    subprocess.run([bins / "tsc", "--noEmit"], cwd=SOURCE, check=True, timeout=120)
    env = {**os.environ, "OUT": str(tmp_path)}
    subprocess.run([bins / "vite", "build"], cwd=SOURCE, check=True, env=env, timeout=120)
    for name in ("page.js", "page.css"):
        assert (tmp_path / name).read_bytes() == (STATIC / name).read_bytes(), (
            f"{name} is not what its source builds: npm run build in plugins/report_page"
        )
