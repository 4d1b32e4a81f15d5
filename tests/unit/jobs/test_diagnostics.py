"""Faults as text and as data, and pydantic's findings in plain words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dreambooth.component import Section
from dreambooth.helpers.text import did_you_mean, nearest, quoted
from dreambooth.jobs.diagnostics import Diagnostic, JobErrors
from dreambooth.jobs.document import read_document
from dreambooth.jobs.wording import explain

if TYPE_CHECKING:
    from pathlib import Path


def test_a_fault_is_shown_with_its_line_and_a_caret() -> None:
    fault = Diagnostic(
        "job.yaml", 7, 3, 'unknown key "weight_deacy"', 'did you mean "weight_decay"?', "  weight_"
    )
    assert fault.render() == (
        'job.yaml:7:3: unknown key "weight_deacy"; did you mean "weight_decay"?\n'
        "      weight_\n"
        "      ^"
    )


def test_the_caret_stands_right_below_tabs_and_wide_characters() -> None:
    assert Diagnostic("f", 1, 4, "m", "", "\t犬 x").render().splitlines()[-1] == "    \t   ^"


def test_long_lines_are_cut_around_the_caret() -> None:
    lines = Diagnostic("f", 1, 501, "m", "", "a" * 500 + "X" + "b" * 500).render().splitlines()
    assert len(lines[1]) < 110
    assert lines[1][lines[2].index("^")] == "X"


def test_a_file_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in Diagnostic("f", 1, 1, "\x1b[31m", "", "\x9b31m\x1b").render()


def test_faults_come_in_the_order_of_the_file_and_once() -> None:
    faults = [Diagnostic("f", n, 1, "m") for n in (3, 1, 3)]
    faults.append(Diagnostic("-o x", None, None, "m"))
    assert [d.line for d in JobErrors(faults).diagnostics] == [1, 3, None]
    assert str(JobErrors(faults)).splitlines()[0] == "f:1:1: m"


def test_hints_go_on_the_sentence() -> None:
    assert Diagnostic("f", 1, 1, "Gone.", "Put it back.").headline() == "f:1:1: Gone; put it back"
    assert Diagnostic("f", 1, 1, "m", "SNR is.").headline() == "f:1:1: m; SNR is"


def test_nearest_words() -> None:
    assert nearest("Adamw", ["AdamW", "SGD"]) == "AdamW"
    assert nearest("zzz", ["adamw"]) is None
    assert did_you_mean("zzz", ["adamw", "sgd"]) == "known: adamw, sgd"
    assert did_you_mean("zzz", []) == ""


def test_values_are_shortened() -> None:
    assert quoted("x" * 100) == '"' + "x" * 56 + "..."
    assert quoted({"a": 1}) == "a mapping"
    assert quoted("a\nb") == '"a\\nb"'


class Inner(Section):
    size: int | tuple[int, int] = Field(default=1)
    mode: Literal["fast", "exact"] | bool = "fast"
    ratio: float = Field(default=0.5, ge=0.0, lt=1.0, allow_inf_nan=False)
    names: list[str] = Field(default=[], min_length=1, max_length=2, validate_default=False)
    label: str = Field(default="x", max_length=3)
    table: dict[str, int] = Field(default={})


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    inners: list[Inner] = []
    other: Inner | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Outer:
        if self.inners and self.other:
            raise ValueError("inners and other exclude each other")
        return self


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: {size: x}", '1:15: inner.size must be a whole number or a list, is "x"'),
        ("inner: {size: [1, x]}", '1:19: inner.size.1 must be a whole number, is "x"'),
        ("inner: {size: [1]}", "1:15: inner.size has too few items"),
        ("inner: {size: [1, 2, 3]}", "1:15: inner.size must have at most 2 items, is a list"),
        ("inner: {mode: fats}", '"exact" or true or false, is "fats"; did you mean "fast"?'),
        ("inner: {ratio: 1}", "1:16: inner.ratio must be less than 1, is 1"),
        ("inner: {ratio: .inf}", "inner.ratio must be a finite number, is"),
        ("inner: {ratio: '0.5'}", "must be a number, is \"0.5\"; write 0.5, without quotes"),
        ("inner: {ratio: }", "must be a number, is null; give a value, or leave the line out"),
        ("inner: {names: []}", "must have at least 1 items, is a list"),
        ("inner: {names: a}", 'must be a list, is "a"; write [a]'),
        ("inner: {names: [1]}", 'inner.names.0 must be text, is 1; put it in quotes'),
        ("inner: {label: long}", 'must have at most 3 characters, is "long"'),
        ("inner: {table: {a: b}}", "1:20: inner.table.a must be a whole number"),
        ("inner: 3", "1:8: inner must be a mapping, is 3"),
        ("inner:\n  raito: 1", '2:3: unknown key "raito"; did you mean "ratio"?'),
        ("inners:\n- label: a\n- labl: b", '3:3: unknown key "labl"; did you mean "label"?'),
        ("other: {ratoi: 1}", '1:9: unknown key "ratoi"; did you mean "ratio"?'),
        ("label: b", '1:1: unknown key "label"; it belongs in "inner" or "inners" or "other"'),
        ("inners: [{}]\nother: {}", "1:1: inners and other exclude each other"),
    ],
)  # fmt: skip
def test_findings_are_said_in_plain_words(tmp_path: Path, text: str, expected: str) -> None:
    headlines = findings(tmp_path, text)
    assert len(headlines) == 1, headlines
    assert expected in headlines[0]
    assert "Input" not in headlines[0]


def findings(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    document = read_document(path)
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json(json.dumps(document.data), strict=True)
    return [d.headline() for d in JobErrors(explain(caught.value, document, Outer)).diagnostics]
