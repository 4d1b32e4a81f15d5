"""Job files: YAML 1.2 read with the place of every key and value, or refused in plain words."""

from __future__ import annotations

import codecs
import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.files import read_limited
from dreambooth.helpers.text import nearest
from dreambooth.jobs.diagnostics import Diagnostic, JobErrors
from dreambooth.jobs.yaml import Mark, YamlProblem, compose

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dreambooth.component import Location

MAX_BYTES = 256 * 1024
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Document:
    """A job file's data and where everything stands; overrides from the command line on top."""

    file: str
    """The file as the person named it."""
    data: dict[str, Any]
    lines: tuple[str, ...] = ()
    keys: Mapping[Location, Mark] = field(default_factory=dict)
    values: Mapping[Location, Mark] = field(default_factory=dict)
    overrides: dict[Location, str] = field(default_factory=dict)
    """What each overridden location was set to, as typed: `train.steps=abc`."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the job start from."""
        return Path(self.file).absolute().parent

    def diagnostic(
        self, at: Location, message: str, hint: str = "", *, on_key: bool = False
    ) -> Diagnostic:
        """Return a fault at a location; the nearest enclosing one where it is not written out."""
        if (text := self._override(at)) is not None:
            return Diagnostic(f"-o {text}", None, None, message, hint, at=at)
        mark = self.mark(at, on_key=on_key)
        return Diagnostic(self.file, *mark, message, hint, self._line(mark), at)

    def mark(self, at: Location, *, on_key: bool = False) -> Mark:
        """Return where a value (or its key) stands; for what is not there, what it belongs in."""
        first, second = (self.keys, self.values) if on_key else (self.values, self.keys)
        if at in first:
            return first[at]
        if at in second:
            return second[at]
        for end in range(len(at) - 1, 0, -1):
            place = self.keys.get(at[:end]) or self.values.get(at[:end])
            if place is not None:
                return place
        return self.values.get((), Mark(1, 1))

    def _override(self, at: Location) -> str | None:
        """Return the newest override that set a location, or that made it appear."""
        for place, text in reversed(self.overrides.items()):
            inside = at[: len(place)] == place
            if inside or (at and place[: len(at)] == at and at not in self.values):
                return text
        return None

    def _line(self, mark: Mark) -> str:
        return self.lines[mark.line - 1] if mark.line <= len(self.lines) else ""


def read_document(path: str | Path) -> Document:
    """Read a job file. Raises `JobErrors`, with every fault that can be told apart."""
    file = str(path)
    text = _decode(file, _read(file))
    lines = tuple(_LINE_BREAK.split(text))
    try:
        composed = compose(text)
    except YamlProblem as problem:
        raise _located(file, lines, [problem]) from None
    if composed.problems:
        raise _located(file, lines, composed.problems)
    if composed.empty or composed.data is None:
        hint = "`dbt init` writes a job to start from"
        raise JobErrors([Diagnostic(file, None, None, "the file is empty", hint)])
    if not isinstance(composed.data, dict):
        message = 'a job is a mapping of sections, written as "key: value" lines'
        raise _located(file, lines, [YamlProblem(composed.values[()], message)])
    return Document(file, composed.data, lines, composed.keys, composed.values)


def _located(file: str, lines: tuple[str, ...], problems: Iterable[YamlProblem]) -> JobErrors:
    found = []
    for problem in problems:
        line, column = problem.mark or (None, None)
        source = lines[line - 1] if line is not None and line <= len(lines) else ""
        found.append(Diagnostic(file, line, column, problem.message, problem.hint, source))
    return JobErrors(found)


def _refuse(file: str, message: str, hint: str = "") -> JobErrors:
    return JobErrors([Diagnostic(file, None, None, message, hint)])


def _read(file: str) -> bytes:
    """Return the bytes of a regular file of bounded size; nothing else is opened or waited for."""
    if os.path.isdir(file):
        inside = sorted(p.name for p in Path(file).glob("*.y*ml"))
        hint = f'did you mean "{Path(file, inside[0])}"?' if inside else "name the job file in it"
        raise _refuse(file, "is a folder, not a job file", hint)
    try:
        return read_limited(Path(file), MAX_BYTES)
    except FileNotFoundError:
        raise _missing(file) from None
    except PermissionError:
        raise _refuse(file, "no permission to read the file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refuse(file, *_reason(error)) from None


def _reason(error: OSError | ValueError) -> tuple[str, str]:
    number = getattr(error, "errno", None)
    if number == errno.EFBIG:
        return f"larger than {MAX_BYTES // 1024} KiB", "that is not a job file"
    if number == errno.EINVAL:
        return "is not a regular file", "write the job to a file first"
    if number == errno.ENOTDIR:
        return "no such file: part of the path is not a folder", ""
    return f"cannot be read: {getattr(error, 'strerror', error)}", ""


def _missing(file: str) -> JobErrors:
    path = Path(file)
    if not path.parent.is_dir():
        return _refuse(file, f'no such file: there is no folder "{path.parent}"')
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        names = []
    stems = [n for n in names if Path(n).stem == path.stem]
    near = sorted(stems)[0] if stems else nearest(path.name, names)
    hint = f'did you mean "{path.parent / near}"?' if near else "`dbt init` writes one"
    return _refuse(file, "no such file", hint)


def _decode(file: str, content: bytes) -> str:
    """Return the text without a byte-order mark; refuses what is not UTF-8 text."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _refuse(file, "is UTF-16 text", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = content[: error.start].decode("utf-8-sig", errors="replace")
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text"
        raise _at_end_of(file, good, message, "save the file as UTF-8") from None
    if found := _UNPRINTABLE.search(text):
        message = f"control character U+{ord(found.group()):04X}"
        raise _at_end_of(file, text[: found.start()], message, "that is not a job file")
    return text


def _at_end_of(file: str, text: str, message: str, hint: str) -> JobErrors:
    lines = _LINE_BREAK.split(text)
    return JobErrors([Diagnostic(file, len(lines), len(lines[-1]) + 1, message, hint)])
