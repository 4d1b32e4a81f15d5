"""Captions: which count, which are reported, which stop the run."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from test_data_folder import problems, reasons, save, scan

from dreambooth.errors import JobError
from dreambooth.interfaces import Subject
from dreambooth_plugins.data.folder import Folder
from dreambooth_plugins.data.judging import names_subject


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name, ord(name[0]))
    (tmp_path / "a.txt").write_bytes("\ufeffa {identifier}  {class_noun}\tat sea\r\n\n".encode())
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
        ("a.txt", b"caf\xe9", r"not UTF-8: a.txt \(perhaps cp1252\)"),
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


# --- encodings: what can be told is read, the rest is named at once


TEXT = "{identifier}の犬、ソファー"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-bom", "utf-16-be-bom"]
)
def test_what_a_byte_order_mark_announces_is_read(tmp_path: Path, encoding: str) -> None:
    name = encoding.removesuffix("-bom")
    mark = "\ufeff" if name != encoding else ""
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes((mark + TEXT).encode(name))
    row = '{"file_name": "b.png", "text": "' + TEXT + '"}'
    save(tmp_path / "b.png", 1)
    (tmp_path / "metadata.jsonl").write_bytes((mark + row).encode(name))
    assert problems(tmp_path) == []
    assert [item.caption for item in scan(tmp_path)[0].items] == [TEXT, TEXT]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1252", "ohwx’s café"), ("shift_jis", TEXT), ("euc_jp", TEXT), ("utf-16-le", "an ohwx dog"),
     ("utf-16-be", "an ohwx dog")],
)  # fmt: skip
def test_another_encoding_is_guessed_and_read_once_it_is_said(
    tmp_path: Path, encoding: str, text: str
) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", ord(name))
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.caption").write_bytes(text.encode(encoding))
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    with pytest.raises(JobError) as caught:
        scan(tmp_path)
    [problem] = problems(tmp_path)
    assert (problem.message, problem.hint) == (caught.value.message, caught.value.hint)
    assert f"a.txt (perhaps {encoding}), b.caption (perhaps {encoding})" in problem.message
    assert "c.txt" not in problem.message
    assert f"data.caption_encoding: {encoding}" in problem.hint
    result, _ = scan(tmp_path, caption_encoding=encoding)
    assert [item.caption for item in result.items] == [text] * 3
    assert problems(tmp_path, caption_encoding=encoding) == []


def test_a_wrong_encoding_is_no_text_either(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("café".encode("cp1252"))
    with pytest.raises(JobError, match=r"not UTF-8 or shift_jis: a\.txt"):
        scan(tmp_path, caption_encoding="shift_jis")


@pytest.mark.parametrize("encoding", ["klingon", "base64", "", "x" * 99])
def test_an_encoding_must_be_one_of_texts(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ValueError, match="no text encoding is called"):
        Folder(path=tmp_path, caption_encoding=encoding)


# --- names and lines


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_equal_however_their_accents_are_stored(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = ["café", "ñandú", "Ångström"]
    for seed, name in enumerate(names):
        save(tmp_path / f"{normalize(form, name)}.png", seed)
    (tmp_path / normalize(other, "café.txt")).write_text("ohwx one")
    (tmp_path / normalize(other, "Ångström.png.caption")).write_text("ohwx three")
    line = json.dumps({"file_name": normalize(other, "ñandú.png"), "text": "ohwx two"})
    (tmp_path / "metadata.jsonl").write_text(line)
    result, ctx = scan(tmp_path)
    assert sorted(item.caption for item in result.items) == ["ohwx one", "ohwx three", "ohwx two"]
    assert (result.rejected, ctx.warnings) == ((), [])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_identifier_with_an_accent_is_seen_however_it_is_stored(
    tmp_path: Path, form: str
) -> None:
    subject = Subject(identifier=normalize(form, "ké"), class_noun="dog")
    for spelt in ("a ké dog", "a KÉ, dog"):
        assert names_subject(normalize("NFC", spelt), subject)
        assert names_subject(normalize("NFD", spelt), subject)
    assert not names_subject("a kén dog", subject)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_metadata_end_at_line_breaks_alone(tmp_path: Path, odd: str, end: str) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name, ord(name[0]))
    texts = {"a.png": f"ohwx{odd}sits", "b.png": "ohwx runs"}
    raw = odd if ord(odd) > 31 else json.dumps(odd)[1:-1]  # JSON wants those below 32 escaped
    lines = [f'{{"file_name": "{n}", "text": "{t.replace(odd, raw)}"}}' for n, t in texts.items()]
    (tmp_path / "metadata.jsonl").write_bytes((end.join(lines) + end).encode())
    result, _ = scan(tmp_path)
    assert [item.caption for item in result.items] == ["ohwx sits", "ohwx runs"]


def test_a_caption_of_several_lines_is_read_as_one_and_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("an ohwx dog\n\n  at sea\n")
    result, ctx = scan(tmp_path)
    assert result.items[0].caption == "an ohwx dog at sea"
    assert ctx.warnings == ["captions of several lines are read as one: a.txt"]


# --- captions in files of other tools


@pytest.mark.parametrize(
    ("name", "word"),
    [("metadata.csv", "table"), ("train.parquet", "table"), ("captions.tsv", "table"),
     ("meta_cap.json", "table"), ("dataset.jsonl", "table"), ("a.json", "picture's caption"),
     ("a.png.json", "picture's caption"), ("a.cap", "picture's caption"),
     ("a.tags", "picture's caption")],
)  # fmt: skip
def test_captions_that_are_not_read_are_named(tmp_path: Path, name: str, word: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / name).write_text("file_name,text\na.png,ohwx\n")
    (tmp_path / "notes.pdf").write_text("x")
    result, ctx = scan(tmp_path)
    assert word in reasons(result)[name]
    assert reasons(result)["notes.pdf"] == "not an image"
    [warning] = ctx.warnings
    assert f"not read: {name}; captions are read from" in warning
    assert "metadata.jsonl" in warning
    assert scan(tmp_path, captions="none")[1].warnings == []
