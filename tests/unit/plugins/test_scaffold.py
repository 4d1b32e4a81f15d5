"""`dbt plugins new`: a package a slot that lints, type-checks, installs, passes its test."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.errors import JobError
from dreambooth.plugins import classes
from dreambooth.plugins.hooks import COMMAND_HOOK
from dreambooth.plugins.scaffold import SUITES, package_for, write
from dreambooth.plugins.slots import SLOTS

KINDS = [*SLOTS, "command"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return the folder with a package a slot, and further ones with short and long names."""
    root = tmp_path_factory.mktemp("packages")
    for slot in KINDS:
        write(package_for(name(slot), slot), root / name(slot))
        for other in (f"x{KINDS.index(slot)}", f"name-of-twenty-eight-letters-{KINDS.index(slot)}"):
            write(package_for(other, slot), root / "others" / other)
    return root


def name(slot):
    return f"acme-{slot.replace('_', '-')}"


def module(slot):
    return name(slot).replace("-", "_")


def run(*args, cwd, path=""):
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    env |= {"TERM": "dumb", "COLUMNS": "100"}
    return subprocess.run(
        [str(a) for a in args], cwd=cwd, env=env, check=False, capture_output=True, text=True
    )


def test_there_is_a_package_for_every_slot_and_hook():
    assert set(SUITES) == set(SLOTS)
    for slot in SLOTS.values():
        for alias in (slot.name, slot.hook, *slot.fields):
            assert package_for("a", alias).slot == slot.name
    assert package_for("a", COMMAND_HOOK).slot == "command"


def test_all_are_clean_under_ruff(packages):
    done = run(BIN / "ruff", "check", ".", cwd=packages)
    assert done.returncode == 0, done.stdout
    done = run(BIN / "ruff", "format", "--check", ".", cwd=packages)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_all_are_clean_under_strict_mypy(packages, tmp_path):
    """In one go: the settings of one package are those of all."""
    settings = packages / name("loss") / "pyproject.toml"
    sources = [packages / name(slot) / "src" / module(slot) for slot in KINDS]
    options = ("--config-file", settings, "--cache-dir", tmp_path / "cache")
    done = run(BIN / "mypy", *options, *sources, cwd=packages)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("slot", SLOTS)
def test_the_component_satisfies_its_slot(slot, packages, monkeypatch):
    monkeypatch.syspath_prepend(packages / name(slot) / "src")
    plugin = importlib.import_module(f"{module(slot)}.plugin")
    found: classes.Classes = {}
    classes.call_hooks(plugin, "mine", found)
    assert set(found) == {(slot, module(slot))}
    for cls in found.values():
        classes.check_options(cls)


@pytest.fixture(scope="module")
def tested(packages):
    """Return what all packages' own tests say, run in one process: torch is imported once."""
    (packages / "pytest.ini").write_text("[pytest]\n")  # names are then relative to this folder
    sources = os.pathsep.join(str(packages / name(slot) / "src") for slot in KINDS)
    return run(
        sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--import-mode=importlib",
        *(f"{name(slot)}/tests" for slot in KINDS), cwd=packages, path=sources,
    ).stdout  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("slot", KINDS)
def test_a_package_passes_its_own_test(slot, tested):
    line = rf"^{name(slot)}/tests/\S+ (PASSED|SKIPPED|FAILED|ERROR)"
    said = re.findall(line, tested, flags=re.MULTILINE)
    assert set(said) <= {"PASSED", "SKIPPED"}, tested[-6000:]
    assert said.count("PASSED") >= 3


@pytest.mark.slow
def test_an_author_runs_it_in_the_packages_folder(packages):
    folder = packages / name("lr_schedule")
    done = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        cwd=folder, path=str(folder / "src"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_all_install_and_are_listed(packages, tmp_path):
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    pip += ["--disable-pip-version-check", "--target", site]
    done = run(sys.executable, *pip, *(packages / name(s) for s in KINDS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-m", "dreambooth", "plugins", "list", "--strict",
               cwd=tmp_path, path=str(site))  # fmt: skip
    assert done.returncode == 0, done.stderr
    for slot in SLOTS:
        assert f"{slot}: {module(slot)}" in done.stdout
    assert f"commands: {name('command')}" in done.stdout
    shown = run(sys.executable, "-m", "dreambooth", "--help", cwd=tmp_path, path=str(site))
    assert f"{name('command')}" in shown.stdout


@pytest.mark.parametrize("bad", ["My-Plugin", "1st", "a b", "dreambooth", "-x", "a--b"])
def test_a_name_that_pip_would_not_take_is_refused(bad):
    with pytest.raises(JobError, match="is no name for a plugin's package"):
        package_for(bad, "loss")


def test_an_unknown_slot_is_told_the_nearest():
    with pytest.raises(JobError) as caught:
        package_for("a", "freezin")
    assert caught.value.hint == 'did you mean "freezing"?'


def test_the_command_writes_it_and_says_what_comes_next(dbt, tmp_path):
    done = dbt("plugins", "new", "my-losses", "--slot", "loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "my-losses/src/my_losses/plugin.py" in done.stdout
    assert "next: cd my-losses && pip install -e '.[dev]' && python -m pytest" in done.stdout
    assert (tmp_path / "my-losses/pyproject.toml").is_file()
    again = dbt("plugins", "new", "my-losses", "--slot", "loss", cwd=tmp_path)
    assert again.returncode == 2
    assert "holds something already" in again.stderr
