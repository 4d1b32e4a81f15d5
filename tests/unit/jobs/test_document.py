"""Job files as text: what YAML means, where things stand, what is refused and how fast."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import MAX_BYTES, read_document
from dreambooth.jobs.scalars import resolve

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 2.0


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "job.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path | str) -> list[str]:
    """Return `line:column: message; hint` of each fault, and hold the time limit."""
    began = time.monotonic()
    with pytest.raises(JobErrors) as caught:
        read_document(path)
    assert time.monotonic() - began < SECONDS
    return [d.headline().removeprefix(f"{path}:").strip() for d in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E6", 5e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("~", None),
        ("", None),
        ("null", None),
        ("TRUE", True),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("0o8", "0o8"),
        ("-.inf", -math.inf),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", "1e999", "9" * 101])
def test_numbers_no_job_can_use_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        resolve(text)


def test_quoted_and_block_scalars_are_text(tmp_path: Path) -> None:
    found = read_document(write(tmp_path, "a: '1'\nb: \"true\"\nc: |\n  2\nd: >-\n  3\n"))
    assert found.data == {"a": "1", "b": "true", "c": "2\n", "d": "3"}


def test_places_of_keys_and_values(tmp_path: Path) -> None:
    text = "name: x\r\noptimizer:\r\n  kind: adamw\r\n  lr:   1e-4\r\ntrackers: [a, {kind: b}]\r\n"
    document = read_document(write(tmp_path, text))
    assert document.mark(("optimizer", "lr")) == (4, 9)
    assert document.mark(("optimizer", "lr"), on_key=True) == (4, 3)
    assert document.mark(("optimizer",), on_key=True) == (2, 1)
    assert document.mark(("trackers", 1, "kind")) == (5, 22)


def test_place_of_what_is_missing_is_the_mapping_it_is_missing_in(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "name: x\ndata:\n  kind: folder\n"))
    assert document.mark(("data", "path")) == (2, 1)
    assert document.mark(("data", "path", "deeper")) == (2, 1)
    assert document.mark(("subject",)) == (1, 1)


def test_aliases_are_expanded_and_keep_their_places(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "a: &x [1, 2]\nb: *x\n"))
    assert document.data == {"a": [1, 2], "b": [1, 2]}
    assert document.mark(("b", 1)) == (1, 11)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, b"\xef\xbb\xbfname: x\n"))
    assert document.data == {"name": "x"}
    assert document.mark(("name",), on_key=True) == (1, 1)


def test_all_faulty_keys_are_reported_at_once(tmp_path: Path) -> None:
    found = refused(write(tmp_path, "a: 1\na: 2\nb:\n  c: 1\n  c: 2\n? [1]\n: 2\n3: x\n"))
    assert [f.split(":")[0] for f in found] == ["2", "5", "6", "8"]


@pytest.mark.parametrize(
    ("content", "starts"),
    [
        ("a: b: c\n", "1:5: not valid YAML"),
        ("a:\n\tb: 1\n", "2:1: not valid YAML: a tab cannot indent"),
        ("a: [1, 2\n", "1:4: not valid YAML"),
        ("a: @x\n", "1:4: not valid YAML: a value cannot begin with @"),
        ("a: 'x\n", "1:4: not valid YAML: a quote is not closed; it was opened on line 1"),
        ("a: !!python/name:os.system x\n", "1:4: tag"),
        ("%YAML 1.1\n---\na: 1\n", "2:1: job files are YAML 1.2"),
        ("a: 1\n---\nb: 1\n", "2:1: a second document"),
        ("a: *x\n", "1:4: alias *x has no anchor"),
        ("a: &x [*x]\n", "1:8: alias *x contains itself"),
        ('a: "\\ud800"\n', "1:4: U+D800"),
        ('a: "\\0"\n', "1:4: U+0000"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ("text\n", "1:1: a job is a mapping"),
        ("- a\n", "1:1: a job is a mapping"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("---\n", "the file is empty"),
        (b"name: \x00x\n", "1:7: control character U+0000"),
        (b"a: 1\nname: x\x1b[31m\n", "2:8: control character U+001B"),
        (b"a: 1\nname: caf\xe9\n", "2:10: byte 0xe9 is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_broken_text_is_refused_with_its_place(
    tmp_path: Path, content: str | bytes, starts: str
) -> None:
    assert refused(write(tmp_path, content))[0].startswith(starts)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "a: " + "[" * 65 + "]" * 65,
        "- " * 100_000,
        "? " * 100_000,
        "".join(f"{' ' * i}a:\n" for i in range(80)),
        BOMB,
        "a: &a [[[[[[[[[[1]]]]]]]]]]\n" + "".join(
            f"{n}: &{n} [[[[[[[[[[*{o}]]]]]]]]]]\n"
            for o, n in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "a: [" + "x, " * 60_000 + "]",
        "".join(f"k{i}: 1\n" for i in range(25_000)),
        "---\n" * 60_000,
        '"' * 200_000,
        "!" * 200_000,
        "a: !<" + "%41" * 60_000 + "> x",
        "&a " * 60_000,
        ": " * 100_000,
    ],
    ids=lambda text: repr(text[:16]),
)  # fmt: skip
def test_hostile_text_is_refused_at_once(tmp_path: Path, text: str) -> None:
    assert refused(write(tmp_path, text))


def test_nesting_up_to_the_limit_is_read(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, "a: " + "[" * 63 + "]" * 63)).data["a"] is not None


def test_big_files_are_refused_unread(tmp_path: Path) -> None:
    assert refused(write(tmp_path, "#" * (MAX_BYTES + 1)))[0].startswith("larger than 256 KiB")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.yaml"
    os.mkfifo(fifo)
    assert refused(fifo) == ["is not a regular file; write the job to a file first"]
    assert refused("/dev/zero")[0].startswith("is not a regular file")
    assert "no such file" in refused(f"{write(tmp_path, 'a: 1')}/x.yaml")[0]
    assert "cannot be read" in refused("a\0b")[0]


def test_a_folder_names_the_job_file_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\n")
    assert refused(tmp_path)[0] == f'is a folder, not a job file; did you mean "{path}"?'


def test_a_missing_file_names_its_sibling(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1\n")
    assert refused(tmp_path / "job.yml")[0] == f'no such file; did you mean "{path}"?'
    assert refused(tmp_path / "jbo.yaml")[0] == f'no such file; did you mean "{path}"?'
    assert "there is no folder" in refused(tmp_path / "gone" / "job.yaml")[0]


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a: 1\n")
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: let the system say what others hear

        def deny(*_: Any) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", deny)
    assert refused(path) == ["no permission to read the file"]


def read_or_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        return isinstance(read_document(path).data, dict)
    except JobErrors as errors:
        return bool(errors.located())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    assert read_or_refused(tmp_path_factory.getbasetemp() / "any.yaml", content)


@given(st.text(alphabet="ab:-[]{},'\"#&*!|>%@ \n\t?~1", max_size=60))
def test_any_text_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    assert read_or_refused(tmp_path_factory.getbasetemp() / "any.yaml", content.encode())
