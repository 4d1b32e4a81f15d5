"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc

import pytest

from dreambooth.files import (
    new_folder,
    read_limited,
    remove,
    sweep,
    token,
    write_bytes,
    write_json,
    write_text,
)
from dreambooth.files import writing as files


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(
        "dreambooth.files.writing.sync", lambda _: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def moments(monkeypatch):
    """What is brought to the disk and what is renamed, by name and in order."""
    seen, sync, rename = [], files.sync, files.rename

    def plain(path):
        return path.name if path.name[0] != "." else "beside"

    def noted(path):
        seen.append(("sync", plain(path)))
        sync(path)

    def moved(path, dest):
        seen.append(("rename", plain(path), plain(dest)))
        rename(path, dest)

    monkeypatch.setattr(files, "sync", noted)
    monkeypatch.setattr(files, "rename", moved)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, moments):
    files.write_bytes(tmp_path / "a.json", b"{}")
    assert moments == [("sync", "beside"), ("rename", "beside", "a.json")]


def test_a_folder_and_its_name_are_on_the_disk(tmp_path, moments):
    with new_folder(tmp_path / "kept" / "step-1") as beside:
        (beside / "a.bin").write_bytes(b"1")
        assert not moments
    assert moments == [
        ("sync", "a.bin"),
        ("rename", "step-1", "beside"),
        ("rename", "beside", "step-1"),
        ("sync", "kept"),
    ]


def test_to_sync_is_to_ask_the_system(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "fsync", lambda handle: asked.append(os.fstat(handle).st_ino))
    (tmp_path / "a").touch()
    files.sync(tmp_path / "a")
    files.sync(tmp_path)
    assert asked == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


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


def test_writers_with_equal_process_numbers_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with new_folder(tmp_path / "model", once=True) as one:
        (one / "a").write_text("mine")
        with new_folder(tmp_path / "model", once=True) as other:
            (other / "a").write_text("first")
    assert (tmp_path / "model/a").read_text() == "first"  # content that can only be the same
    written = []

    def between(beside):
        written.append(beside.name)
        if len(written) == 1:
            files.write_with(tmp_path / "x.json", between)
        beside.write_text(str(len(written)))

    files.write_with(tmp_path / "x.json", between)
    assert len(set(written)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "x.json"]


def test_a_folder_that_another_process_puts_there_meanwhile_stays(tmp_path, monkeypatch):
    dest = tmp_path / "model"
    move = files.rename

    def too_late(path, target):
        if path.name.endswith(".new"):
            dest.mkdir()
            (dest / "a").write_text("theirs")
        move(path, target)

    monkeypatch.setattr(files, "rename", too_late)
    with new_folder(dest) as beside:
        (beside / "a").write_text("ours")
    assert (dest / "a").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_writers_left_is_swept_by_old_and_new_names_and_nothing_else(tmp_path):
    left = (f".a.{token()}.new", f".step-000001.{token()}.gone", ".a.123.old", f".a.{token()}.json")
    kept = ("a", ".gitignore", ".a.b", "a.1.new", ".hidden-7-12345678x.new", ".lock")
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(kept)


def test_a_sweep_does_not_mind_what_others_sweep_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / f".a.{token()}.json"
    path.touch()
    monkeypatch.setattr(files.time, "time", lambda: path.unlink() or 1e12)
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_removed_ends_nothing(tmp_path, monkeypatch):
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000002/a").touch()

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "in use", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        remove(tmp_path / "step-000002")
    [rest] = tmp_path.iterdir()
    assert rest.name.startswith(".step-000002.")
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


REPLACE = """
import os, sys
from pathlib import Path
from dreambooth.files import writing as files
from dreambooth.files import new_folder
rename = files.rename
def deadly(path, target):
    if path.name.endswith(".new"):
        os._exit(9)
    return rename(path, target)
files.rename = deadly
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
    rename = files.rename

    def refused(path, target):
        if path.name.endswith(".new"):
            raise OSError("refused")
        rename(path, target)

    monkeypatch.setattr(files, "rename", refused)
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
