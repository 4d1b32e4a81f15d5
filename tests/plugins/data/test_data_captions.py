"""Captions: which count, which are reported, which stop the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_data_folder import reasons, save, scan

from dreambooth.errors import JobError
from dreambooth_plugins.data.folder import Folder


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name, ord(name[0]))
    (tmp_path / "a.txt").write_bytes("\ufeffa {identifier} {class_noun}\r\n at sea\n".encode())
    (tmp_path / "b.caption").write_text("an ohwx dog")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "c.png", "caption": "ohwx asleep"}\n')
    result, ctx = scan(tmp_path)
    assert [i.caption for i in result.items] == [
        "a {identifier} {class_noun} at sea", "an ohwx dog", "ohwx asleep",
    ]  # fmt: skip
    assert result.rejected == ()
    assert ctx.warnings == []
    source = Folder(path=tmp_path)
    assert source.item_prompt(result.items[0], ctx.job.subject) == "a ohwx dog at sea"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("auto", "t ohwx"), ("txt", "t ohwx"), ("caption", "c ohwx"), ("metadata", "m ohwx"),
     ("none", None)],
)  # fmt: skip
def test_which_caption_counts(tmp_path: Path, kind: str, expected: str | None) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("t ohwx")
    (tmp_path / "a.caption").write_text("c ohwx")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "m ohwx"}')
    result, ctx = scan(tmp_path, captions=kind)
    assert result.items[0].caption == expected
    if kind == "auto":
        assert ctx.warnings == [
            "images with several captions train with the first; not used: a.caption, "
            "metadata.jsonl:1"
        ]
    else:
        assert len(result.rejected) == (3 if kind == "none" else 2)
        assert all(f"captions: {kind} does not read it" in r.reason for r in result.rejected)


def test_captions_without_a_picture_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("ohwx")
    (tmp_path / "b.txt").write_text("ohwx")
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "z.png", "text": "ohwx"}\n')
    result, ctx = scan(tmp_path)
    assert reasons(result) == {
        "b.txt": "caption without a usable image named b",
        "metadata.jsonl:2": "caption without a usable image named z.png",
    }
    assert any("captions without a picture: b.txt, metadata.jsonl:2" in w for w in ctx.warnings)


def test_captions_that_teach_nothing_are_told_once(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / f"{k}.png", k)
    (tmp_path / "0.txt").write_text("a dog")
    (tmp_path / "1.txt").write_text("a nice dog")
    (tmp_path / "2.txt").write_text("{identifier} {klass}")
    (tmp_path / "3.txt").write_text(" \n")
    _, ctx = scan(tmp_path)
    told = "\n".join(ctx.warnings)
    assert "2 of 3 captions do not name 'ohwx'" in told
    assert "nothing fills in" in told
    assert "2.png" in told
    assert "empty caption files count as none: 3.txt" in told
    assert "1 of 4 images have no caption" in told
    assert len(ctx.warnings) == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8"),
        ("metadata.jsonl", b'\n{"file_name": ', "metadata.jsonl:2: not JSON"),
        ("metadata.jsonl", b'{"text": "x"}', "metadata.jsonl:1: no file_name"),
        ("metadata.jsonl", b'{"file_name": "a.png"}', "metadata.jsonl:1: no caption"),
        ("metadata.jsonl", b"[1]", "metadata.jsonl:1: no file_name"),
    ],
)
def test_caption_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=said) as caught:
        scan(tmp_path)
    assert caught.value.hint
