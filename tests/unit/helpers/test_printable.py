"""Text that a stranger chose, on the way to a terminal, a log and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from dreambooth import console
from dreambooth.cli.display.progress import LiveReporter
from dreambooth.engine.reporting import Logged, Quiet
from dreambooth.engine.results.card import Export, Facts, card
from dreambooth.errors import RunError
from dreambooth.helpers.text import code_span, flat, in_markdown, json_text, one_line, printable
from dreambooth.interfaces import Check

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\r\x7f"
"""Clears a screen, sets a title, turns red (twice), reads backwards, overwrites its line."""


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


@pytest.mark.parametrize("how", [printable, one_line, flat, code_span, in_markdown, json_text])
def test_nothing_is_left_that_steers_a_terminal(how: Any) -> None:
    assert harmless(how(EVIL))
    assert "gnp.exe" in how(EVIL)
    assert how("a café, 犬 \U0001f98a").count("\U0001f98a") == 1


def test_lines_stay_where_lines_are_meant() -> None:
    assert printable("a\n\tb") == "a\n\tb"
    assert one_line("a\nb").count("\n") == 0
    assert flat(" a \n b ") == "a b"
    assert code_span("`a`\n| b") == "`'a' | b`"
    assert in_markdown("[x](http://y) <b> *c* `d`") == r"\[x\](http://y) \<b> \*c\* \`d\`"


def test_json_on_a_terminal_reads_back_as_it_was() -> None:
    value = {EVIL: [EVIL, "caf\udce9", "é\n"]}
    assert json.loads(json_text(value)) == value
    assert "é" in json_text(value)


def test_errors_and_warnings_steer_no_terminal(capsys: Any) -> None:
    console.print_error(RunError(f"no {EVIL}", f"mend {EVIL}"))
    console.print_warning(EVIL)
    assert harmless(capsys.readouterr().err)


def test_a_name_forges_no_line_of_the_log(tmp_path: Path) -> None:
    log = Logged(Quiet(), tmp_path / "run.log")
    log.warn("left out: a\n2026-01-01T00:00:00+00:00 info trained to step 400.png")
    first, second = (tmp_path / "run.log").read_text().splitlines()
    assert " warning left out: a" in first
    assert second.startswith("    2026")


def test_a_bars_label_is_text_and_no_markup(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as file:
        screen = Console(file=file, force_terminal=True, width=100)
        with LiveReporter(screen).progress(f"hash [/nothing] {EVIL}", 2) as bar:
            bar.advance()
    said = (tmp_path / "said").read_text()
    assert "[/nothing]" in said
    assert "\x9b" not in said
    assert "\x1b]0" not in said


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["validate"], ["validate", "--json"]])
def test_names_of_files_and_prompts_steer_no_terminal(
    dbt: Any, tmp_path: Path, command: list[str]
) -> None:
    evil = EVIL.replace("/", "")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 40), "red").save(pictures / "a.png")
    (pictures / f"{evil}.png").write_bytes(b"no picture")
    (pictures / "b\nleft out: nothing.png").write_bytes(b"no picture")
    job = {
        "name": "small", "prior": "none", "trackers": ["jsonl"], "train": {"steps": 2},
        "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
        "subject": {"identifier": f"oh{EVIL}wx", "class_noun": f"dog{EVIL}"},
        "data": {"kind": "folder", "path": "pictures", "resolution": 32,
                 "prompt": f"{{identifier}} {{class_noun}} {EVIL}"},
        "samples": {"every": 0},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = dbt(command[0], "job.yaml", *command[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout + done.stderr)
    assert done.stdout
    if command[0] == "run":
        left_out = [
            line for line in done.stdout.splitlines() if line.strip().startswith("left out: ")
        ]
        assert [line.split("left out: ")[1][0] for line in left_out] == ["a", "b"]


def test_a_model_card_holds_no_markup_of_strangers(small_job: Any) -> None:
    evil = f"{EVIL}`<script>[x](http://y)|"
    job = small_job(subject={"identifier": f"oh{evil}", "class_noun": f"dog{evil}"}, prior="none")
    exporter = SimpleNamespace(usage=lambda job, info, files: "")
    export: Any = Export("lora", Path("x"), Check(True, evil), exporter)  # type: ignore[arg-type]
    facts = Facts(
        2, 3, {evil: 2, f"b{evil}": 1}, "fp32", {evil: 1.0}, f"kept {evil}", f"stop {evil}"
    )
    text = card(job, job.model.describe(), export, facts, [evil], [])
    assert harmless(text)
    outside = [piece for line in text.splitlines()[12:] for piece in line.split("`")[::2]]
    for piece in outside:
        for mark in ("<script", "[x"):
            assert f"{mark}" not in piece.replace(f"\\{mark}", "")
