"""A new plugin's package: it installs, is linted and type-checked, and passes its own test."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth.files import new_folder
from dreambooth.helpers.text import did_you_mean
from dreambooth.plugins.found import COMMANDS, GROUP, OWN_DISTRIBUTION
from dreambooth.plugins.hooks import COMMAND_HOOK
from dreambooth.plugins.slots import SLOTS

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = "command"
SUITES = {
    "model": "ModelConformance",
    "data": "DataSourceConformance",
    "prior": "PriorConformance",
    "freezing": "FreezingPolicyConformance",
    "loss": "LossConformance",
    "scheduler": "SchedulerConformance",
    "sampler": "SamplerConformance",
    "optimizer": "OptimizerConformance",
    "lr_schedule": "LRScheduleConformance",
    "tracker": "TrackerConformance",
    "metric": "MetricConformance",
    "finding": "FindingRuleConformance",
    "exporter": "ExporterConformance",
    "callback": "CallbackConformance",
    "safety": "SafetyConformance",
    "captioner": "CaptionerConformance",
    "masker": "MaskerConformance",
}
NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_.]?[a-z0-9]+)*")


@dataclass(frozen=True)
class Package:
    """A plugin's package, before it is written."""

    name: str
    """Name of the distribution, e.g. `my-policies`."""
    slot: str

    @property
    def module(self) -> str:
        """The package that is imported."""
        return re.sub(r"[-.]", "_", self.name)

    @property
    def cls(self) -> str:
        """The component's class."""
        return "".join(part.capitalize() for part in re.split(r"[-_.]", self.name))

    @property
    def file(self) -> str:
        """The module with the hook, below the package."""
        return "commands" if self.slot == COMMAND else "plugin"

    def source(self) -> str:
        """Return the module with the component or command."""
        folder = resources.files("dreambooth.plugins") / "templates"
        text = (folder / f"{self.slot}.txt").read_text(encoding="utf-8")
        words = {"CLASS": self.cls, "KIND": self.module, "FUNCTION": self.module}
        text = re.sub(r"\b(CLASS|KIND|FUNCTION)\b", lambda match: words[match[1]], text)
        return text

    def test(self) -> str:
        """Return the test: the suite of the slot."""
        if self.slot == COMMAND:
            return _COMMAND_TEST.format(module=self.module)
        body = _BODIES.get(self.slot, "    component = {cls}()\n").format(cls=self.cls)
        return _TEST.format(
            module=self.module, cls=self.cls, suite=SUITES[self.slot], body=body,
            imports=_IMPORTS.get(self.slot, ""),
        )  # fmt: skip

    def project(self) -> str:
        """Return its pyproject.toml."""
        group = f'"{COMMANDS}"' if self.slot == COMMAND else GROUP
        minor = ".".join(version(OWN_DISTRIBUTION).split(".")[:2])
        following = f"{minor.split('.')[0]}.{int(minor.split('.')[1]) + 1}"
        return _PROJECT.format(
            name=self.name, module=self.module, group=group, target=f"{self.module}.{self.file}",
            minor=minor, following=following,
            what="A command" if self.slot == COMMAND else f"A {self.slot} kind",
        )  # fmt: skip

    def readme(self) -> str:
        """Return its README.md, with the commands that come next."""
        used = _USED_COMMAND if self.slot == COMMAND else _USED.get(self.slot, _USED_KIND)
        field = "" if self.slot == COMMAND else SLOTS[self.slot].field
        return _README.format(
            name=self.name,
            file=f"src/{self.module}/{self.file}.py",
            shown=self.name if self.slot == COMMAND else self.module,
            used=used.format(kind=self.module, field=field, name=self.name.replace("_", "-")),
        )


def write(package: Package, folder: Path) -> list[str]:
    """Write a package into a new or empty folder; returns the names of its files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} holds something already", "name a new or an empty folder: --dir")
    files = {
        "pyproject.toml": package.project(),
        "README.md": package.readme(),
        ".gitignore": "__pycache__/\n.venv/\ndist/\n.*_cache/\n",
        f"src/{package.module}/__init__.py": f'"""{package.name}, for dreambooth-trainer."""\n',
        f"src/{package.module}/py.typed": "",
        f"src/{package.module}/{package.file}.py": package.source(),
        "tests/test_plugin.py": package.test(),
    }
    with new_folder(folder) as beside:
        for name, text in files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return list(files)


def package_for(name: str, slot: str) -> Package:
    """Return the package for a name and a slot, its field of a job, or its hook.

    `JobError` for a name that pip would not take, one that is built in, and an unknown slot.
    """
    if not NAME.fullmatch(name) or name in {GROUP, "dreambooth-trainer"}:
        raise JobError(
            f'"{name}" is no name for a plugin\'s package',
            "lower-case letters, digits and -, beginning with a letter: my-policies",
        )
    slots = {alias: s.name for s in SLOTS.values() for alias in (s.name, s.hook, *s.fields)}
    slots |= dict.fromkeys((COMMAND, COMMAND_HOOK, "commands"), COMMAND)
    if slot not in slots:
        near = did_you_mean(slot, [*SLOTS, COMMAND])
        raise JobError(f'there is no slot "{slot}"', near)
    return Package(name, slots[slot])


_IMPORTS = {"data": "from pathlib import Path\n\n"}
_BODIES = {
    "data": "    def make(self, pictures: Path) -> {cls}:\n"
    "        return {cls}(path=pictures, resolution=32)\n",
    "sampler": "    component = {cls}(steps=2)\n",
    "prior": "    component = {cls}()\n"
    '    sections = {{"freezing": "adapter"}}  # a policy that shows the base\n',
}
_TEST = '''"""What the slot's base promises: python -m pytest."""

{imports}from dreambooth.testing import {suite}

from {module}.plugin import {cls}


class Test{cls}({suite}):
{body}'''
_COMMAND_TEST = '''"""It joins `dbt`: python -m pytest."""

from dreambooth.testing import CommandConformance

from {module} import commands


class TestCommands(CommandConformance):
    plugin = commands
'''
_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "{what} for dreambooth-trainer"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["dreambooth-trainer>={minor},<{following}"]
classifiers = ["Typing :: Typed"]

[project.optional-dependencies]
dev = ["mypy", "pytest", "ruff"]

[project.entry-points.{group}]
{name} = "{target}"

[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]

[tool.ruff]
line-length = 100

[tool.ruff.lint]
select = ["B", "E", "F", "I", "UP"]

[tool.mypy]
strict = true
files = ["src"]
plugins = ["pydantic.mypy"]

[[tool.mypy.overrides]]
# These leave many of their calls untyped.
module = ["diffusers.*", "safetensors.*", "transformers.*"]
ignore_missing_imports = true
follow_imports = "skip"

[tool.pytest.ini_options]
testpaths = ["tests"]
filterwarnings = ["ignore::DeprecationWarning:diffusers.*"]
"""
_README = """\
# {name}

{used}

## Working on it

```console
$ pip install -e '.[dev]'
$ dbt plugins show {shown}
$ python -m pytest        # the suite of the slot: each failure says what to change
$ ruff check . && mypy
```

What it does is in `{file}`. To publish it: `pip install build && python -m build`, and upload
what is in `dist/`.
"""
_USED_KIND = "```yaml\n# in a job\n{field}: {kind}\n```"
_USED = {
    "data": "```yaml\n# in a job\n{field}: {{kind: {kind}, path: pictures}}\n```",
    **dict.fromkeys(
        ("tracker", "metric", "finding", "exporter", "callback"),
        "```yaml\n# in a job\n{field}: [{kind}]\n```",
    ),
}
_USED["captioner"] = "```console\n$ dbt doctor pictures --captions {kind}\n```"
_USED["masker"] = "```console\n$ dbt doctor pictures --masks {kind}\n```"
_USED_COMMAND = "```console\n$ dbt {name} runs/my-dog\n```"
