"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from dreambooth.files import new_folder, write_bytes, write_json, write_text


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
