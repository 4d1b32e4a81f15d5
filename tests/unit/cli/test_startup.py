"""What answers at once must load little: no tensor library, and a budget of modules."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "numpy", "peft"}

PROBE = """
import json, sys
from dreambooth.cli import main
try:
    main()
finally:
    json.dump(sorted(sys.modules), open(sys.argv[0], "w"))
"""

JOB = """
model: {kind: stable_diffusion, source: "builtin:tiny"}
subject: {identifier: ohwx, class_noun: dog}
data: {kind: folder, path: pictures, resolution: 64}
"""


def modules(tmp_path: Path, *args: str) -> list[str]:
    """Return the modules a command has loaded when it ends."""
    listing = tmp_path / "modules.json"
    code = f"import sys; sys.argv = [{str(listing)!r}, *{list(args)!r}]\n{PROBE}"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL
    )
    return list(json.loads(listing.read_text()))


@pytest.fixture
def job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "dog.png")


# About a tenth above what was counted when each budget was set.
@pytest.mark.parametrize(
    ("args", "budget"),
    [
        (["--help"], 260),
        (["--version"], 190),
        (["schema"], 470),
        (["plugins", "list"], 470),
        (["validate", "job.yaml"], 535),
        (["identifier", "job.yaml"], 535),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("job")
def test_commands_that_answer_at_once_load_little(
    tmp_path: Path, args: list[str], budget: int
) -> None:
    loaded = modules(tmp_path, *args)
    assert not HEAVY & {name.split(".")[0] for name in loaded}
    assert len(loaded) < budget


def test_help_needs_no_models_and_of_plugins_the_commands_alone(tmp_path: Path) -> None:
    loaded = modules(tmp_path, "--help")
    assert not {name.split(".")[0] for name in loaded} & {"pydantic", "rich", "ruamel", "jinja2"}
    bringing = {ep.module for ep in entry_points(group="dreambooth.commands")}
    allowed = {part for module in bringing for part in parents(module)}
    assert {name for name in loaded if name.startswith("dreambooth_plugins")} <= allowed


def parents(module: str) -> list[str]:
    names = module.split(".")
    return [".".join(names[: i + 1]) for i in range(len(names))]


def test_the_package_alone_loads_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import dreambooth; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "dreambooth"
