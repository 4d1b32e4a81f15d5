from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import pytest

from dreambooth.errors import RunError
from dreambooth.plugins import registry
from dreambooth_plugins.tracker.csv import Csv

NAME = "metrics.csv"


def write(folder, steps, resume_step=0, **more):
    writer = Csv().open(SimpleNamespace(folder=folder), resume_step)
    for step in steps:
        writer.scalars(step, {"train/loss": step / 3, "train/lr": 1e-6, **more})
    writer.flush()
    writer.close()


def rows(folder):
    with (folder / NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_number_that_reads_back_to_the_bit(tmp_path):
    write(tmp_path, [10, 20], odd=math.inf, **{'a,"b"': 2.0})
    assert (tmp_path / NAME).read_text().splitlines()[0] == "step,name,value"
    found = rows(tmp_path)
    assert [(int(r["step"]), r["name"]) for r in found[:4]] == [
        (10, "train/loss"), (10, "train/lr"), (10, "odd"), (10, 'a,"b"'),
    ]  # fmt: skip
    assert float(found[0]["value"]) == 10 / 3
    assert float(found[1]["value"]) == 1e-6
    assert found[2]["value"] == ""
    assert len(found) == 8


@pytest.mark.parametrize("torn", ["", "30,train/lo", "3"])
def test_a_resumed_file_equals_a_straight_one(tmp_path, torn):
    straight, resumed = tmp_path / "a", tmp_path / "b"
    straight.mkdir()
    resumed.mkdir()
    write(straight, range(10, 60, 10))
    write(resumed, range(10, 50, 10))
    with (resumed / NAME).open("a") as file:
        file.write(torn)
    write(resumed, range(30, 60, 10), 20)
    assert (resumed / NAME).read_bytes() == (straight / NAME).read_bytes()


def test_a_fresh_run_starts_anew_and_damage_is_told(tmp_path):
    write(tmp_path, [10])
    write(tmp_path, [])
    assert (tmp_path / NAME).read_text() == "step,name,value\n"
    (tmp_path / NAME).write_text("step,name,value\n1,a,2\n???\n3,a,1\n")
    with pytest.raises(RunError, match="line 3 of"):
        write(tmp_path, [], 3)


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").write_text("step,name,value\n10,a,1\n")
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    write(tmp_path, [20], 10)
    assert (tmp_path / "elsewhere").read_text() == "step,name,value\n10,a,1\n"
    assert not (tmp_path / NAME).is_symlink()


def test_csv_is_registered():
    assert registry().kinds("tracker")["csv"] is Csv
