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
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth.diagnostics import JobErrors
from dreambooth.errors import UserError
from dreambooth.jobfile import check_job, dump_job, load_job
from dreambooth.starter import Starter, job_text
from dreambooth.yamlfile import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

many = pytest.mark.parametrize("examples", [200, pytest.param(5000, marks=pytest.mark.slow)])


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
        data.append(load(file).data)
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
        assert error.render().encode()
        assert json.dumps([found.as_dict() for found in error.diagnostics])


def same_when_reloaded(job: Job, file: Path) -> None:
    """Dump a job and read it back: everything in it must be the same, types included."""
    again = file.with_name("again.yaml")
    again.write_text(dump_job(job), encoding="utf-8")
    reloaded = load_job(again)
    assert reloaded == job
    assert repr(reloaded.resolved()) == repr(job.resolved())


NAMES = [
    "", " ", "a" * 300, "a/" * 3000, "~", "~nobody/x", "../..", "/dev/null", "/dev/zero", ".",
    "\U0001f600", "\u202e", "\x85", "\u2028", "\ufeff", "a\nb", "builtin:", "builtin:../x",
    "builtin:sd15", "http://x/y", "a/b", "a/b..c", "a/--b", "a/b.git", "x.safetensors", "x.ckpt",
    "cuda:99", "cuda:-1", "meta", "os.system", "${HOME}", "$(true)", "x" * 70 + "/" + "y" * 70,
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**60, 1e308, -0.0, 5e-324, 1.5,
    math.inf, -math.inf, math.nan, "none", "auto", "{identifier}", "{oops}", [], {}, [1], [[]],
    [None], {"a": 1}, {"kind": "none"}, {"kind": 1}, {"kind": []}, {"kind": "adamw", "lr": {}},
    [64, 64], [64], [64, 64, 64], "null", "1e-4", "0x1F", "0o7", "yes", "1_000", ".nan", "::",
    "- a", "#", "'", '"', "%", "@x", "`", "*", "&a", "!!str", "<<", "\\", "a\nb: c", "\t", *NAMES,
]  # fmt: skip
odd = st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=12))
where = st.integers(0, 10**6)
edit = st.tuples(
    st.sampled_from(["drop", "put", "rename", "nest", "listed", "copy", "text"]), where, odd, where
)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the location of every key and item."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inside:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def spoil(data: dict[str, Any], edits: list[tuple[str, int, Any, int]]) -> dict[str, Any]:
    """Return a copy with some places changed."""
    data = deepcopy(data)
    for how, number, value, other in edits:
        found = list(places(data))
        if not found:
            break
        *above, key = found[number % len(found)]
        source: Any = data
        for step in found[other % len(found)]:
            source = source[step]
        container: Any = data
        for step in above:
            container = container[step]
        changed = {
            "put": value,
            "nest": {"kind" if other % 2 else str(key): container[key]},
            "listed": [container[key]],
            "copy": deepcopy(source),
            "text": str(container[key]),
        }
        if how in changed:
            container[key] = changed[how]
        elif how == "drop" or not isinstance(container, dict):
            del container[key]
        else:
            container[str(value)] = container.pop(key)
    return data


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


def fuzz(examples: int, *strategies: Any, check: Callable[..., None]) -> None:
    """Call `check` with drawn values: the same ones on every run of the usual tests."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settled = settings(
        deadline=None, max_examples=examples, derandomize=examples < 1000, database=None,
        suppress_health_check=quiet,
    )  # fmt: skip
    settled(given(*strategies)(check))()


@many
def test_spoilt_mappings_are_refused_in_words_or_reload_equal(bases: Bases, examples: int) -> None:
    seen: Counter[str] = Counter()

    def check(base: int, edits: list[tuple[str, int, Any, int]]) -> None:
        bases.file.write_text(as_yaml(spoil(bases.data[base], edits)))
        seen[outcome(bases.file)] += 1

    number = st.integers(0, len(bases.data) - 1)
    fuzz(examples, number, st.lists(edit, min_size=1, max_size=3), check=check)
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
    assert min(seen["accepted"], seen["refused"]) > examples // 100
