"""Jobs spoilt at random: refused in words or accepted whole, never a traceback.

What is accepted resolves, dumps and reloads equal. `make test-slow` tries many more.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth.cli.starter import Starter, job_text
from dreambooth.errors import UserError
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import read_document
from dreambooth.jobs.loading import check_job, dump_job, load_job
from spoiling import NAMES, Edit, edits, fuzz, odd, places, spoil, where

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth import Job

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = """\
name: small
model: {kind: stable_diffusion, source: "builtin:tiny"}
subject: {identifier: ohwx, class_noun: dog}
data: {kind: folder, path: pictures, resolution: 32, caption_dropout: 0.1}
prior: {kind: generated, count: 4, batch_size: 4}
train: {steps: 4, precision: fp32, ema: {decay: 0.9}}
trackers: [jsonl, {kind: tensorboard, images: each}]
exports: [diffusers]
callbacks: [{kind: time_limit, minutes: 5}]
"""

many = pytest.mark.parametrize("examples", [120, pytest.param(5000, marks=pytest.mark.slow)])


class Bases(NamedTuple):
    """Good jobs, and the file that spoilt ones are written to."""

    file: Path
    texts: tuple[str, ...]
    data: tuple[dict[str, Any], ...]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bases]:
    """The README's job, the starter's, a small one, and that one with its defaults written out."""
    folder = tmp_path_factory.mktemp("jobs") / "a/b"  # `../..` stays inside
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "pictures/a.png")
    file = folder / "job.yaml"
    [readme] = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    starter = Starter("fox", "ohwx", "fox", "pictures", 5, 64, "builtin:tiny")
    texts = [readme.replace("path/to/stable-diffusion-v1-5", "builtin:tiny"), job_text(starter)]
    file.write_text(SMALL)
    texts += [SMALL, dump_job(load_job(file))]
    data = []
    for text in texts:
        file.write_text(text)
        check_job(file)
        data.append(read_document(file).data)
    import huggingface_hub.constants  # noqa: F401  (keeps what it finds set when imported)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # a name such as a/b is then known to be absent at once
        patch.setenv("HOME", str(folder))
        yield Bases(file, tuple(texts), tuple(data))


def outcome(file: Path, overrides: tuple[str, ...] = ()) -> str:
    """Check a job; what is refused must be said in words, what is taken must reload equal."""
    try:
        job = load_job(file, overrides)
        same_when_reloaded(job, file)
        check_job(file, overrides)
    except UserError as error:
        told_in_words(error)
        return "refused"
    return "accepted"


def told_in_words(error: UserError) -> None:
    """Check that an error can be shown, as text and as JSON, and says something."""
    assert error.message.strip()
    if isinstance(error, JobErrors):
        assert error.diagnostics
        assert all(found.message.strip() for found in error.diagnostics)
        assert error.located().encode()
        assert json.dumps([found.as_dict() for found in error.diagnostics])


def same_when_reloaded(job: Job, file: Path) -> None:
    """Dump a job and read it back: everything in it must be the same, types included."""
    again = file.with_name("again.yaml")
    again.write_text(dump_job(job), encoding="utf-8")
    reloaded = load_job(again)
    assert reloaded == job
    assert repr(reloaded.resolved()) == repr(job.resolved())


def as_yaml(value: Any) -> str:
    """Write plain data as YAML in brackets."""
    if isinstance(value, dict):
        inside = ", ".join(f"{as_yaml(str(k))}: {as_yaml(v)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[repr(value)]
    return json.dumps(value)


@many
def test_spoilt_mappings_are_refused_in_words_or_reload_equal(bases: Bases, examples: int) -> None:
    seen: Counter[str] = Counter()

    def check(base: int, changes: list[Edit]) -> None:
        bases.file.write_text(as_yaml(spoil(bases.data[base], changes)))
        seen[outcome(bases.file)] += 1

    number = st.integers(0, len(bases.data) - 1)
    fuzz(examples, number, edits, check=check)
    assert min(seen["accepted"], seen["refused"]) > examples // 20  # both ways are walked


@pytest.mark.parametrize(
    "at", ["output", "data.path", "model.source", "model.vae", "model.config", "train.device"]
)
def test_odd_names_are_refused_in_words_or_reload_equal(bases: Bases, at: str) -> None:
    """The texts of a job that the system is asked about."""
    *above, key = at.split(".")
    for name in NAMES:
        data = deepcopy(bases.data[2])
        (data[above[0]] if above else data)[key] = name
        bases.file.write_text(as_yaml(data))
        outcome(bases.file)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    number=st.floats(1e-300, 1.0),
    text=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20),
)
@example(number=0.1 + 0.2, text="\U0001f98a")  # two escapes, as JSON writes it
def test_numbers_and_texts_reload_as_they_were(bases: Bases, number: float, text: str) -> None:
    data = deepcopy(bases.data[2])
    data["optimizer"] = {"kind": "adamw", "lr": number}
    data["subject"]["identifier"] = text
    bases.file.write_text(as_yaml(data))
    job = load_job(bases.file)
    assert job.subject.identifier == text
    assert job.optimizer.key()["lr"] == number
    same_when_reloaded(job, bases.file)


SIGNS = b" :-{}[]#&*!|>'\"%@`,\n\t\r~?<0e.\\\x00\x7f\x85\xc3\xed\xff"
change = st.tuples(
    st.sampled_from(["set", "insert", "delete", "again", "indent"]),
    where,
    st.one_of(st.sampled_from(SIGNS), st.integers(0, 255)),
    st.integers(1, 30),
)


def respell(text: str, changes: list[tuple[str, int, int, int]]) -> bytes:
    """Change bytes of a text: signs of YAML set and inserted, pieces lost, repeated, indented."""
    data = bytearray(text.encode())
    for how, number, byte, length in changes:
        at = number % (len(data) + 1)
        if how == "set":
            data[at : at + 1] = bytes([byte])
        elif how == "insert":
            data[at:at] = bytes([byte])
        elif how == "delete":
            del data[at : at + length]
        elif how == "again":
            data[at:at] = data[max(0, at - length) : at + length]
        else:
            line = data.rfind(b"\n", 0, at) + 1
            data[line:line] = b" " * (length % 4)
    return bytes(data)


@many
def test_spoilt_texts_are_refused_in_words_or_reload_equal(bases: Bases, examples: int) -> None:
    seen: Counter[str] = Counter()

    def check(base: int, changes: list[tuple[str, int, int, int]]) -> None:
        bases.file.write_bytes(respell(bases.texts[base], changes))
        seen[outcome(bases.file)] += 1

    number = st.integers(0, len(bases.texts) - 1)
    fuzz(examples, number, st.lists(change, min_size=1, max_size=3), check=check)
    assert min(seen["accepted"], seen["refused"]) > examples // 50


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_bytes_are_refused_in_words(tmp_path_factory: Any, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    assert outcome(file) == "refused"


@many
def test_overrides_are_refused_in_words_or_reload_equal(bases: Bases, examples: int) -> None:
    seen: Counter[str] = Counter()
    names = [".".join(map(str, at)) for data in bases.data for at in places(data)]
    near = [".x", ".0", ".kind", ".", "..a", "x", ".-1", ".²", f".{10**30}"]
    key = st.one_of(
        st.sampled_from(names),
        st.builds(str.__add__, st.sampled_from(names), st.sampled_from(near)),
        st.text(max_size=8),
    )
    value = st.one_of(odd.map(as_yaml), odd.map(str), st.integers(1, 99).map(str))
    likely = st.builds("{}={}".format, st.sampled_from(names), value)
    text = st.builds("{}{}{}".format, key, st.sampled_from(["=", "==", ""]), value)

    @example(0, ["data.path=caf\udce9"])  # a name that is not UTF-8, as Python passes it on
    @example(0, ["data.path=a\0b"])
    @example(0, ["data.\udce9=1"])
    def check(base: int, overrides: list[str]) -> None:
        bases.file.write_text(bases.texts[base])
        seen[outcome(bases.file, tuple(overrides))] += 1

    number = st.integers(0, len(bases.texts) - 1)
    fuzz(examples, number, st.lists(likely | text, min_size=1, max_size=3), check=check)
    assert min(seen["accepted"], seen["refused"]) >= examples // 100
