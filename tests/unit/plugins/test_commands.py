"""Commands of plugins join `dbt`, and a broken one takes no other with it."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from dreambooth.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Install = Callable[..., None]

HEAD = """
    from typing import Annotated
    import typer
    from dreambooth import hookimpl, UserError
"""
HOOK = """
    @hookimpl
    def register_commands():
        return [{}]
"""
COUNT = """
    def count_files(folder: Annotated[str, typer.Argument()], twice: bool = False) -> None:
        "Count the files of a folder."
        import os
        typer.echo(len(os.listdir(folder)) * (1 + twice))
"""
BAD = {
    "away": ("raise OSError('the server is away')", "OSError: the server is away"),
    "own": (
        f'{HEAD}\n    def run() -> None:\n        "Run."\n{HOOK.format("run")}',
        'command "run" is one of dbt\'s own',
    ),
    "mute": (
        f"{HEAD}\n    def mute() -> None:\n        pass\n{HOOK.format('mute')}",
        "give the function a docstring",
    ),
    "unreadable": (
        f'{HEAD}\n    def odd(x: "NotThere") -> None:\n        "Odd."\n{HOOK.format("odd")}',
        'command "odd": typer cannot read its parameters: NameError',
    ),
    "no-list": (HEAD + HOOK.format("").replace("[]", "None"), "must return a list, not None"),
    "number": (HEAD + HOOK.format("7"), "must return functions or typer.Typer apps; 7 is none"),
    "nameless": (HEAD + HOOK.format("typer.Typer()"), 'typer.Typer(name="mine")'),
    "losses": (
        f"{HEAD}\n    @hookimpl\n    def register_losses():\n        return []",
        'belongs into a module named under the entry-point group "dreambooth"',
    ),
    "misspelt": (
        f"{HEAD}\n    @hookimpl\n    def registr_commands():\n        return []",
        'unknown hook "registr_commands"; did you mean "register_commands"?',
    ),
    "twice": (HEAD + COUNT + HOOK.format("count_files, count_files"), "twice"),
    "files": (
        f"{HEAD}\n    @hookimpl\n    def register_files():\n        return ['recipe']",
        "must return a list of FileKind, not ['recipe']",
    ),
    "leaving": ("raise SystemExit(4)", "SystemExit: 4"),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return `install(distribution, source, group)`, which lays a package without installing."""
    registry()  # made before anything fake can be found
    monkeypatch.syspath_prepend(tmp_path)

    def write(distribution: str, source: str, group: str = "dreambooth.commands") -> None:
        module = f"fake_{distribution.replace('-', '_')}"
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{distribution} = {module}\n")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    for name in [n for n in sys.modules if n.startswith("fake_")]:
        del sys.modules[name]


def test_a_command_joins_and_works(install: Install, dbt, tmp_path) -> None:
    install("counting", HEAD + COUNT + HOOK.format("count_files"))
    done = dbt("--help", cwd=tmp_path)
    assert "  count-files  Count the files of a folder.\n" in done.stdout
    assert done.stderr == ""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    assert dbt("count-files", "full", "--twice", cwd=tmp_path).stdout == "2\n"
    usage = dbt("count-files", "-h", cwd=tmp_path).stdout
    assert usage.startswith("Usage: dbt count-files [OPTIONS] ")
    assert dbt("count-files", cwd=tmp_path).returncode == 2


def test_an_app_of_several_commands_joins(install: Install, dbt, tmp_path) -> None:
    app = """
    app = typer.Typer(name="zoo", help="Animals.")

    @app.command()
    def lion(loud: bool = False) -> None:
        "Roar."
        typer.echo("ROAR" if loud else "roar")

    @app.command()
    def cat() -> None:
        "Purr."
    """
    install("zoo", HEAD + app + HOOK.format("app"))
    assert "  zoo         Animals.\n" in dbt("--help", cwd=tmp_path).stdout
    assert "lion  Roar." in dbt("zoo", "--help", cwd=tmp_path).stdout
    assert dbt("zoo", "lion", "--loud", cwd=tmp_path).stdout == "ROAR\n"


@pytest.mark.parametrize("name", BAD)
def test_a_broken_one_is_named_and_takes_no_other_with_it(
    name: str, install: Install, dbt, tmp_path
) -> None:
    source, why = BAD[name]
    install(f"bad-{name}", source)
    install("counting", HEAD + COUNT + HOOK.format("count_files"))
    done = dbt("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "count-files" in done.stdout
    [warning] = [x for x in done.stderr.splitlines() if x.startswith("warning")]
    assert f'plugin "bad-{name}" (bad-{name} 1.2) is broken: ' in warning
    assert why in warning
    assert dbt("schema", cwd=tmp_path).stderr == ""  # ours are run without a look at it


def test_torch_at_import_is_refused_and_inside_of_the_function_it_is_not(
    install: Install, dbt, tmp_path, monkeypatch
) -> None:
    (tmp_path / "diffusers_stand_in.py").touch()
    monkeypatch.setattr("dreambooth.plugins.commands.HEAVY", ("diffusers_stand_in",))
    heavy = "\n    import diffusers_stand_in\n"
    install("heavy", HEAD + heavy + COUNT + HOOK.format("count_files"))
    done = dbt("--help", cwd=tmp_path)
    assert "imports diffusers_stand_in when it is loaded" in done.stderr
    assert "import it inside the command's function" in done.stderr
    assert "count-files" not in done.stdout


def test_of_two_with_one_name_neither_joins_and_both_are_told(
    install: Install, dbt, tmp_path
) -> None:
    install("one", HEAD + COUNT + HOOK.format("count_files"))
    install("two", HEAD + COUNT + HOOK.format("count_files"))
    done = dbt("plugins", "list", "--strict", cwd=tmp_path)
    assert done.returncode == 3
    both = 'command "count-files" is brought by "one" (one 1.2) and "two" (two 1.2); uninstall one'
    assert both in done.stdout
    assert dbt("count-files", ".", cwd=tmp_path).returncode == 2


def test_a_command_in_the_wrong_group_is_told_where_it_belongs(
    install: Install, dbt, tmp_path, monkeypatch
) -> None:
    install("counting", HEAD + COUNT + HOOK.format("count_files"), group="dreambooth")
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", None)
    done = dbt("plugins", "show", "counting", cwd=tmp_path)
    assert 'under the entry-point group "dreambooth.commands"' in done.stdout


def test_what_a_command_raises_is_told_under_its_name(
    install: Install, dbt, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_TRACE_PLUGINS", "0")  # --trace sets it
    monkeypatch.setattr("dreambooth.component.door._Told.calls", None)
    fail = """
    def fail(user: bool = False, leave: bool = False) -> None:
        "Fail."
        if leave:
            raise typer.Exit(7)
        if user:
            raise UserError("no such year", "try another")
        raise LookupError("the moon is full")
    """
    install("failing", HEAD + fail + HOOK.format("fail"))
    done = dbt("fail", cwd=tmp_path)
    assert done.returncode == 3
    said = 'error: plugin "failing" (failing 1.2), command "fail": LookupError: the moon is full'
    assert said in done.stderr
    assert "fake_failing.py:12)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in dbt("--trace", "fail", cwd=tmp_path).stderr
    monkeypatch.setenv("DREAMBOOTH_TRACE_PLUGINS", "0")
    done = dbt("fail", "--user", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: no such year\n  hint: try another\n")
    assert dbt("fail", "--leave", cwd=tmp_path).returncode == 7


def test_lists_and_show_name_commands(install: Install, dbt, tmp_path) -> None:
    install("counting", HEAD + COUNT + HOOK.format("count_files"))
    rows = json.loads(dbt("plugins", "list", "--json", "--timing", cwd=tmp_path).stdout)
    [row] = [row for row in rows if row["name"] == "counting"]
    assert row["commands"] == ["count-files"]
    assert 0 < row["seconds"] < 5
    assert [r["seconds"] for r in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    [line] = [
        x for x in dbt("plugins", "list", cwd=tmp_path).stdout.splitlines() if "counting" in x
    ]
    assert line.split() == ["counting", "counting", "1.2", "ok", "commands:", "count-files"]
    for name in ("counting", "count-files"):
        assert "  command: dbt count-files" in dbt("plugins", "show", name, cwd=tmp_path).stdout


FILES = """
    from dreambooth import FileKind, JobError, hookimpl

    def model():
        from dreambooth.component import Section

        class Recipe(Section):
            "A recipe."
            cook: str

        return Recipe

    def check(path):
        from dreambooth.api import read_file
        from dreambooth.component import Problem

        recipe = read_file(path, model())
        if recipe.value.cook == "nobody":
            raise recipe.wrong([Problem(("cook",), "somebody has to cook", "name one")])
        return f"cooked by {recipe.value.cook}"

    @hookimpl
    def register_files():
        return [FileKind("recipe", "cook", model, check)]
"""


def test_files_of_a_plugin_are_validated_and_have_a_schema(install, dbt, tmp_path) -> None:
    install("recipes", FILES)
    path = tmp_path / "soup.yaml"
    path.write_text("cook: me\n")
    done = dbt("validate", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{path}: ok: cooked by me\n")
    path.write_text("\ncook: nobody\n")
    done = dbt("validate", path, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{path}:2:7: somebody has to cook; name one" in done.stderr
    path.write_text("cook: [me]\n")
    done = dbt("validate", path, cwd=tmp_path)
    assert f"{path}:1:7: cook must be text" in done.stderr
    done = dbt("schema", "--of", "recipe", cwd=tmp_path)
    assert json.loads(done.stdout)["properties"] == {"cook": {"type": "string"}}
