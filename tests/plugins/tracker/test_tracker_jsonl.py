from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from dreambooth.errors import RunError
from dreambooth.plugins import registry
from dreambooth_plugins.tracker.jsonl import Jsonl


@contextmanager
def opened(folder, resume_step=0):
    writer = Jsonl().open(SimpleNamespace(folder=folder), resume_step)
    yield writer
    writer.close()


def write(folder, steps, resume_step=0):
    with opened(folder, resume_step) as writer:
        for step in steps:
            writer.scalars(step, {"train/loss": step / 3, "train/lr": 1e-6})


def test_one_line_a_logged_step_and_nothing_else(tmp_path):
    write(tmp_path, [10, 20])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "train/loss": 10 / 3, "train/lr": 1e-6},
        {"step": 20, "train/loss": 20 / 3, "train/lr": 1e-6},
    ]


def test_resumed_file_equals_a_straight_one(tmp_path):
    straight, resumed = tmp_path / "a", tmp_path / "b"
    straight.mkdir()
    resumed.mkdir()
    write(straight, range(10, 60, 10))
    write(resumed, range(10, 50, 10))
    write(resumed, range(30, 60, 10), 20)
    name = "metrics.jsonl"
    assert (resumed / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize("torn", [b'{"step": 30, "train/lo', b'{"ste', b"{}", b"\xff\xfe", b"30"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [10, 20])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    write(tmp_path, [], 20)
    assert path.read_bytes() == whole


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10, "train/loss": 1.0}')
    write(tmp_path, [20], 10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


def test_damage_in_the_middle_is_reported_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n???\n{"step": 3}\n')
    with pytest.raises(RunError, match="line 2 of"):
        write(tmp_path, [], 3)


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    write(tmp_path, [0, 10])
    write(tmp_path, [])
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_not_finite_numbers_stay_valid_json(tmp_path):
    with opened(tmp_path) as writer:
        writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": 2.0})
        writer.flush()
        text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 2.0}
    assert "NaN" not in text


def test_errors_reach_the_engine(tmp_path):
    with opened(tmp_path) as writer:
        writer.scalars(1, {"a": 1.0})
    with pytest.raises(ValueError, match="closed"):
        writer.scalars(1, {"a": 1.0})


def test_jsonl_is_registered():
    assert registry().kinds("tracker")["jsonl"] is Jsonl


@pytest.mark.parametrize(
    "line", ['{"step": "x"}', '{"step": [1]}', "[" * 50_000, '{"step": 1e999}']
)
def test_a_strangers_line_is_reported(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunError, match="line 2 of"):
        write(tmp_path, [], 3)


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").write_text('{"step": 10}\n')
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, [20], 10)
    assert (tmp_path / "elsewhere").read_text() == '{"step": 10}\n'
    assert not (tmp_path / "metrics.jsonl").is_symlink()
