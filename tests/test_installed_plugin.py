"""Plugins as people install them: built, put on the path by pip, used through the program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

POLICY = '''
from typing import Literal

from dreambooth import FreezingPolicy, hookimpl


class NameContains(FreezingPolicy):
    """Train the parameters of one part whose name contains a string."""

    kind: Literal["name_contains"] = "name_contains"
    contains: str = "attn2"
    """Part of the name of a parameter that trains."""
    part: Literal["unet", "text_encoder"] = "unet"
    """The part it lies in."""

    def trainable(self, model):
        return {n: p for n, p in model.named_parameters(self.part) if self.contains in n}


@hookimpl
def register_freezing_policies():
    return [NameContains]
'''
TWIN = POLICY.replace('"name_contains"', '"components"').replace("NameContains", "MyComponents")
SIGNATURE = POLICY.replace("policies():", "policies(job):").replace("name_contains", "never_seen")
DISTRIBUTIONS = {
    "contains-plugin": POLICY,
    "raising-plugin": "raise RuntimeError('the licence server is away')\n",
    "twin-plugin": TWIN,
    "signature-plugin": SIGNATURE,
}


def write_package(folder: Path, name: str, source: str) -> None:
    """Write the source tree of a plugin; its entry point has the distribution's name."""
    package = name.replace("-", "_")
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (folder / package / "plugin.py").write_text(source, encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        textwrap.dedent(f"""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"

            [project]
            name = "{name}"
            version = "1.2"
            dependencies = ["dreambooth-trainer"]

            [project.entry-points.dreambooth]
            {name} = "{package}.plugin"
        """)
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build all four packages, let pip install them, and return the folder they are in."""
    root = tmp_path_factory.mktemp("installed")
    for name, source in DISTRIBUTIONS.items():
        write_package(root / name, name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    pip += ["--no-index", "--disable-pip-version-check", "--target", str(root / "site")]
    pip += [str(root / name) for name in DISTRIBUTIONS]
    done = subprocess.run(pip, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "site"


def dbt(*args: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, with a folder put before its path."""
    env = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    if path:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "dreambooth", *args]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=env, timeout=120
    )


def rows(path: Path | None) -> dict[str, dict[str, Any]]:
    done = dbt("plugins", "list", "--json", path=path)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def listed(installed: Path) -> dict[str, dict[str, Any]]:
    return rows(installed)


def validate(freezing: str, installed: Path, folder: Path) -> tuple[int, str]:
    """Validate a job with this freezing policy; return the exit code and what stderr says."""
    (folder / "pictures").mkdir()
    job = folder / "job.yaml"
    job.write_text(
        "version: 1\n"
        "subject: {identifier: ohwx, class_noun: dog}\n"
        "data: {kind: folder, path: pictures, resolution: 64}\n"
        f"freezing: {freezing}\n"
    )
    done = dbt("validate", str(job), path=installed)
    return done.returncode, done.stderr


def test_an_installed_plugin_is_listed(listed: dict[str, dict[str, Any]]) -> None:
    assert listed["contains-plugin"] == {
        "name": "contains-plugin",
        "distribution": "contains-plugin",
        "version": "1.2",
        "status": "ok",
        "slots": ["freezing"],
        "kinds": {"freezing": ["name_contains"]},
        "error": "",
        "commands": [],
    }


def test_broken_ones_are_reported_and_everything_else_is_as_before(
    listed: dict[str, dict[str, Any]],
) -> None:
    before = rows(None)
    assert {row["status"] for row in before.values()} == {"ok"}
    for name, error in (
        ("raising-plugin", "RuntimeError: the licence server is away ("),
        ("signature-plugin", "wrong hook signature"),
    ):
        assert listed[name]["status"] == "broken"
        assert error in listed[name]["error"]
    assert listed["twin-plugin"]["status"] == "collision"
    changed = {name for name, row in before.items() if listed[name] != row}
    assert changed == {"default-freezing"}
    assert listed["default-freezing"]["status"] == "collision"


def test_its_options_are_shown(installed: Path) -> None:
    shown = dbt("plugins", "show", "name_contains", path=installed).stdout
    assert 'contains: str (default "attn2")' in shown
    assert 'part: "unet" | "text_encoder" (default "unet")' in shown
    assert "Part of the name of a parameter that trains." in shown


def test_its_options_are_in_the_schema(installed: Path) -> None:
    schema = dbt("schema", path=installed)
    assert schema.returncode == 0, schema.stderr
    found = [d for d in json.loads(schema.stdout)["$defs"].values() if "contains" in str(d)]
    (policy,) = [d for d in found if "contains" in d.get("properties", {})]
    assert policy["properties"]["kind"]["const"] == "name_contains"
    described = policy["properties"]["contains"]["description"]
    assert described == "Part of the name of a parameter that trains."


def test_an_unknown_option_is_reported_where_it_stands(installed: Path, tmp_path: Path) -> None:
    code, told = validate("{kind: name_contains, containz: attn1}", installed, tmp_path)
    assert code == 2
    assert 'job.yaml:4:33: unknown key "containz"; did you mean "contains"?' in told


def test_a_bad_value_is_reported_where_it_stands(installed: Path, tmp_path: Path) -> None:
    code, told = validate("{kind: name_contains, part: vae}", installed, tmp_path)
    assert code == 2
    (line,) = [line for line in told.splitlines() if "job.yaml:4:" in line]
    assert re.search(r'job\.yaml:4:\d+: .*"unet"', line)


def test_good_options_pass(installed: Path, tmp_path: Path) -> None:
    _, told = validate("{kind: name_contains, contains: attn1}", installed, tmp_path)
    assert "job.yaml:4:" not in told


def test_it_trains_what_it_says(
    installed: Path, tmp_path: Path, pictures: Path, tiny_model: Path
) -> None:
    job = tmp_path / "run.yaml"
    job.write_text(
        textwrap.dedent(f"""
            output: {tmp_path / "runs"}
            subject: {{identifier: ohwx, class_noun: dog}}
            model: {{kind: stable_diffusion, source: "{tiny_model}"}}
            data: {{kind: folder, path: "{pictures}", resolution: 32}}
            prior: none
            freezing: {{kind: name_contains, contains: attn2.to_k}}
            optimizer: {{kind: adamw, lr: 1e-3}}
            samples: {{every: 0}}
            train: {{steps: 2}}
            """),
        encoding="utf-8",
    )
    done = dbt("run", str(job), path=installed)
    assert done.returncode == 0, done.stderr
    file = "unet/diffusion_pytorch_model.safetensors"
    before, after = (
        load_file(tiny_model / file),
        load_file(tmp_path / "runs/dreambooth/final" / file),
    )
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in before if "attn2.to_k" in name}
    manifest = json.loads((tmp_path / "runs/dreambooth/manifest.json").read_text())
    assert {"name": "contains-plugin", "distribution": "contains-plugin", "version": "1.2"} in (
        manifest["plugins"]
    )


def test_naming_a_kind_of_a_broken_plugin_says_what_happened(
    installed: Path, tmp_path: Path
) -> None:
    code, told = validate("{kind: licensed_layers}", installed, tmp_path)
    assert code == 2
    (line,) = [line for line in told.splitlines() if "job.yaml:4:" in line]
    assert 'unknown freezing kind "licensed_layers"' in line
    assert '"raising-plugin" (raising-plugin 1.2), which may bring it, could not be loaded' in line


def test_naming_a_kind_that_two_bring_names_both(installed: Path, tmp_path: Path) -> None:
    code, told = validate("components", installed, tmp_path)
    assert code == 2
    (line,) = [line for line in told.splitlines() if "job.yaml:4:" in line]
    assert '"default-freezing" (dreambooth-trainer' in line
    assert '"twin-plugin" (twin-plugin 1.2)' in line
    assert 'uninstall "twin-plugin"' in line
