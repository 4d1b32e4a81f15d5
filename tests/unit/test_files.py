"""Files appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from dreambooth.files import (
    new_folder,
    read_limited,
    sweep,
    write_bytes,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr("dreambooth.files.sync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_writes_make_the_folders_they_need(tmp_path):
    write_json(tmp_path / "x/y/z.json", {"ü": 1})
    assert (tmp_path / "x/y/z.json").read_text() == '{\n  "ü": 1\n}\n'
    write_bytes(tmp_path / "x/b", b"\x00")
    assert (tmp_path / "x/b").read_bytes() == b"\x00"


def test_a_folder_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    dest = tmp_path / "step"
    with new_folder(dest) as beside:
        (beside / "a").write_text("1")

    def fail():
        with new_folder(dest) as beside:
            (beside / "a").write_text("2")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (dest / "a").read_text() == "1"
    with new_folder(dest) as beside:
        (beside / "b").write_text("3")
    assert sorted(p.name for p in dest.iterdir()) == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


REPLACE = """
import os, sys
from pathlib import Path
from dreambooth.files import new_folder
rename = Path.rename
def deadly(path, target):
    if path.name.endswith(".new"):
        os._exit(9)
    return rename(path, target)
Path.rename = deadly
with new_folder(Path(sys.argv[1])) as beside:
    (beside / "a").write_text("new")
"""


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path):
    dest = tmp_path / "final.v1"
    dest.mkdir()
    (dest / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", REPLACE, str(dest)], check=False)
    assert done.returncode == 9
    assert not dest.exists()
    sweep(tmp_path)
    assert (dest / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [dest.name]


def test_what_was_replaced_does_not_come_back(tmp_path):
    for name in ("final", ".final.123.old", ".final.123.new"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_rename_that_fails_leaves_the_old_folder_in_its_place(tmp_path, monkeypatch):
    dest = tmp_path / "step"
    with new_folder(dest) as beside:
        (beside / "a").write_text("1")
    rename = Path.rename

    def refused(path, target):
        if path.name.endswith(".new"):
            raise OSError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="refused"), new_folder(dest):
        pass
    assert (dest / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"small")
    tracemalloc.start()
    try:
        assert read_limited(tmp_path / "a", 1 << 30) == b"small"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
