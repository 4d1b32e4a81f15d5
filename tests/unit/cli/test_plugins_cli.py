"""`dbt plugins list` and `dbt plugins show`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from dreambooth import Loss, hookimpl
from dreambooth.cli.display.kinds import type_text
from dreambooth.cli.plugins import app
from dreambooth.component import Section
from dreambooth.errors import JobError, PluginError
from dreambooth.plugins import Registry, registry
from dreambooth.plugins.found import Source
from dreambooth.plugins.loader import given, load_plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dreambooth.interfaces import StepTensors


class Inner(Section):
    depth: int = 2


class Toy(Loss):
    """A toy loss.

    With a second paragraph.
    """

    kind: Literal["toy"] = "toy"
    scale: float = Field(gt=0.0, le=2.0)
    """How much, in a description that
    goes over two lines."""
    inner: Inner = Inner()

    def rows(self, s: StepTensors) -> Tensor:
        return s.weight


class Imposter(Toy):
    kind: Literal["prior_preservation"] = "prior_preservation"  # type: ignore[assignment]


def fails() -> Any:
    raise OSError("no licence [red]")


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with a working, a broken and a colliding plugin besides the defaults."""
    base = registry()
    toy = SimpleNamespace(register_losses=hookimpl(lambda: [Toy]))
    imposter = SimpleNamespace(register_losses=hookimpl(lambda: [Imposter]))
    more = [
        load_plugin(Source("toy", "toy-box", "1.5", lambda: toy)),
        load_plugin(Source("faulty", "faulty-dist", "0.1", fails)),
        load_plugin(given("imposter", imposter)),
    ]
    made = Registry([*base._loaded, *more])
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", made)
    return made


def dbt(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_list_is_one_line_a_plugin_without_a_terminal() -> None:
    lines = {line.split()[0]: line for line in dbt("list").splitlines()}
    assert lines["toy"].split() == ["toy", "toy-box", "1.5", "ok", "loss:", "toy"]
    assert "faulty-dist" in lines["faulty"]
    assert "broken" in lines["faulty"]
    assert "OSError: no licence [red]" in lines["faulty"]
    assert "collision" in lines["imposter"]
    assert "collision" in lines["default-loss"]
    assert lines["default-sampler"].endswith("sampler: auto, cfg")


def test_list_says_what_is_broken_and_strict_makes_it_an_error() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert 'plugin "faulty" (faulty-dist 0.1) is broken' in result.stderr
    assert "dbt plugins show faulty" in result.stderr
    assert '"imposter"' in result.stderr
    for more in ([], ["--json"]):
        assert CliRunner().invoke(app, ["list", "--strict", *more]).exit_code == 3


def test_list_strict_is_content_where_all_is_well(
    plugins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = [loaded for loaded in plugins._loaded if loaded.info.name.startswith("default-")]
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", Registry(well))
    result = CliRunner().invoke(app, ["list", "--strict"])
    assert (result.exit_code, result.stderr) == (0, "")


def test_list_timing_puts_the_slowest_first(
    plugins: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = load_plugin(Source("slow", "slow-dist", "1", lambda: time.sleep(0.05) or fails()))
    made = Registry([*plugins._loaded, slow])
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", made)
    rows = json.loads(dbt("list", "--timing", "--json"))
    assert [row["seconds"] for row in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    [found] = [row for row in rows if row["name"] == "slow"]
    assert 0.05 <= found["seconds"] < 5.0
    lines = dbt("list", "--timing").splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in rows]
    [line] = [line for line in lines if line.startswith("slow ")]
    assert line.split()[3:5] == [f"{found['seconds'] * 1000:.0f}", "ms"]
    assert not any("seconds" in row for row in json.loads(dbt("list", "--json")))
    both = CliRunner().invoke(app, ["list", "--timing", "--strict", "--json"])
    assert both.exit_code == 3
    assert json.loads(both.stdout) == rows


def test_show_a_slot_that_no_job_fills_names_the_command() -> None:
    shown = dbt("show", "masker")
    assert shown.startswith("slot masker\n  dbt doctor --masks\n")
    assert "    u2net: " in shown
    [slot] = json.loads(dbt("show", "masker", "--json"))["slots"]
    assert (slot["fields"], slot["command"]) == ([], "dbt doctor --masks")


@pytest.mark.parametrize("name", ["callback", "callbacks", "early_stop"])
def test_show_a_slot_lists_its_kinds(name: str) -> None:
    shown = dbt("show", name)
    assert shown.startswith("slot callback\n  in a job: callbacks, early_stop\n")
    assert "hook register_callbacks" in shown
    for kind, cls in registry().kinds("callback").items():
        assert f"    {kind}: {(cls.__doc__ or '').split(chr(10))[0]}" in shown
    [slot] = json.loads(dbt("show", name, "--json"))["slots"]
    assert set(slot["kinds"]) == set(registry().kinds("callback"))


def test_list_json_holds_every_field(plugins: Registry) -> None:
    rows = json.loads(dbt("list", "--json"))
    assert [r["name"] for r in rows] == [i.name for i in plugins.infos]
    (toy,) = [r for r in rows if r["name"] == "toy"]
    assert toy == {
        "name": "toy",
        "distribution": "toy-box",
        "version": "1.5",
        "status": "ok",
        "slots": ["loss"],
        "kinds": {"loss": ["toy"]},
        "error": "",
        "commands": [],
    }


def test_list_in_a_terminal_is_a_table_with_broken_rows_in_red(
    plugins: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dreambooth.cli.plugins import _table

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _table(plugins.infos)
    (row,) = [r for r in capsys.readouterr().out.splitlines() if r.startswith("faulty")]
    assert "\x1b[1;31mbroken" in row
    assert "no licence [red]" in row


def test_show_a_kind_gives_docstring_origin_and_options() -> None:
    assert dbt("show", "toy").split("\n\n")[1:] == dbt("show", "loss/toy").split("\n\n")
    shown = dbt("show", "loss/toy")
    assert shown.startswith('loss/toy\n  plugin "toy" (toy-box 1.5)\n')
    assert "  A toy loss.\n\n  With a second paragraph." in shown
    assert "scale: float > 0.0 and <= 2.0 (required)" in shown
    assert "How much, in a description that goes over two lines." in shown


def test_show_json() -> None:
    found = json.loads(dbt("show", "toy", "--json"))
    assert [p["name"] for p in found["plugins"]] == ["toy"]
    (kind,) = found["kinds"]
    assert (kind["slot"], kind["kind"], kind["class"]) == ("loss", "toy", f"{__name__}.Toy")
    options = {o["name"]: o for o in kind["options"]}
    assert list(options) == ["scale", "inner"]
    assert options["scale"]["required"] is True
    assert options["inner"]["default"] == {"depth": 2}


def test_show_a_plugin_and_a_distribution() -> None:
    assert "loss/toy: A toy loss." in dbt("show", "toy-box")
    assert "error: OSError: no licence" in dbt("show", "faulty")
    assert "loss/prior_preservation (unusable)" in dbt("show", "imposter")
    assert dbt("show", "dreambooth-trainer").count("plugin ") >= 12


def test_show_takes_the_key_of_a_job_as_slot() -> None:
    kind = next(iter(registry().kinds("tracker")))
    assert dbt("show", f"trackers/{kind}") == dbt("show", f"tracker/{kind}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toi", 'no plugin, slot or kind "toi"; did you mean "toy"?'),
        ("loss/toi", 'no loss kind "toi"; did you mean "toy"?'),
        ("los/toy", 'no slot "los"; did you mean "loss"?'),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        dbt("show", name)
    assert caught.value.message == message
    assert caught.value.hint


def test_an_unknown_kind_is_looked_for_in_other_slots_and_broken_plugins() -> None:
    with pytest.raises(JobError) as caught:
        dbt("show", "loss/cfg")
    assert caught.value.hint == '"cfg" is a sampler'
    with pytest.raises(JobError) as caught:
        dbt("show", "loss/unheard_of")
    assert '"faulty" (faulty-dist 0.1)' in caught.value.hint


def test_a_colliding_kind_is_refused_with_the_reason() -> None:
    with pytest.raises(PluginError, match="is brought by"):
        dbt("show", "loss/prior_preservation")


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (Literal["a", "b"], '"a" | "b"'),
        (int | None, "int | null"),
        (Annotated[float, Field(ge=0)] | None, "float >= 0 | null"),
        (list[Annotated[str, Field(min_length=1)]], "list[str at least 1 long]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Path, "path"),
        (Any, "anything"),
    ],
)
def test_types_are_written_for_a_reader(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text
