"""`-o section.key=value`: what it sets, what it starts from, and how its faults are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth import Job
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import Document, read_document
from dreambooth.jobs.loading import dump_job, load_job
from dreambooth.jobs.overrides import overridden

if TYPE_CHECKING:
    from pathlib import Path

BASE = "subject: {identifier: ohwx, class_noun: dog}\ndata: {kind: folder, path: pics}\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(BASE)
    return path


def test_values_are_typed_like_those_of_a_file(base: Path) -> None:
    job = load_job(
        base,
        [
            "train.steps=7",
            "optimizer.lr=1e-4",
            "data.resolution=[64, 128]",
            "data.flip=true",
            'subject.class_noun="1"',
            "samples.prompts=[a dog, 'b: c']",
            "train.max_grad_norm=null",
            "data.prompt=photo: {identifier}",
        ],
    )
    assert (job.train.steps, job.optimizer.lr) == (7, 1e-4)
    assert (job.data.size, job.train.max_grad_norm) == ((64, 128), None)
    assert (job.subject.class_noun, job.data.prompt) == ("1", "photo: {identifier}")
    assert job.samples.prompts == ["a dog", "b: c"]


@pytest.mark.parametrize("text", ["", "optimizer: adamw\n", "optimizer: {kind: adamw}\n"])
def test_a_slot_named_or_left_out_becomes_a_mapping_of_its_kind(base: Path, text: str) -> None:
    base.write_text(BASE + text)
    assert load_job(base, ["optimizer.lr=1e-4"]).optimizer.lr == 1e-4


def test_list_items_are_named_by_index(base: Path) -> None:
    job = load_job(base, ["trackers.0.kind=jsonl", "trackers.1=tensorboard", "trackers.2=jsonl"])
    assert [t.kind for t in job.trackers] == ["jsonl", "tensorboard", "jsonl"]
    assert load_job(base, ["trackers.0.images=none"]).trackers[0].key()["images"] == "none"


def test_sections_that_are_off_by_default_open(base: Path) -> None:
    ema = load_job(base, ["train.ema.decay=0.9"]).train.ema
    assert ema is not None
    assert ema.decay == 0.9


def test_the_last_of_two_wins_and_is_the_one_that_is_named(base: Path) -> None:
    assert load_job(base, ["train.steps=3", "train.steps=5"]).train.steps == 5
    with pytest.raises(JobErrors, match=r"^-o train.steps=0: "):
        load_job(base, ["train.steps=x", "train.steps=0"])
    with pytest.raises(JobErrors, match=r"^-o train.steps=0: "):
        load_job(base, ["train.steps=1", "train={steps: 2}", "train.steps=0"])
    with pytest.raises(JobErrors, match=r"^-o train={steps: -2}: "):
        load_job(base, ["train.steps=0", "train={steps: -2}"])


def test_paths_start_at_the_job_file(base: Path) -> None:
    assert load_job(base, ["output=out"]).output == base.parent / "out"


def test_the_file_is_not_changed_and_keeps_its_places(base: Path) -> None:
    document = read_document(base)
    changed = overridden(document, ["subject.class_noun=cat"], Job)
    assert document.data["subject"]["class_noun"] == "dog"
    assert changed.diagnostic(("subject", "class_noun"), "m").file == "-o subject.class_noun=cat"
    assert changed.diagnostic(("subject", "identifier"), "m").line == 1


def test_faults_of_file_and_options_come_together(base: Path) -> None:
    base.write_text(BASE + "trian: {}\n")
    with pytest.raises(JobErrors) as caught:
        load_job(base, ["optimizer.weight_deacy=1"])
    assert [d.line for d in caught.value.diagnostics] == [3, None]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=abc", 'train.steps must be a whole number, is "abc"'),
        ("train.stps=1", 'unknown key "stps"; did you mean "steps"?'),
        ("trian.steps=1", 'unknown key "trian"; did you mean "train"?'),
        ("optimizer.kind=adamv", 'unknown optimizer kind "adamv"; did you mean "adamw"?'),
        ("train.steps", 'has no "="; write it as section.key=value'),
        ("train..steps=1", "names no key; write it as section.key=value"),
        ("train.steps=", 'has no value; write null, or "" in quotes for an empty text'),
        ("train.steps.x=1", "train.steps is 400, which has nothing below it"),
        ("trackers.x=1", "trackers is a list of 2; name an item by index, 0 to 2"),
        ("trackers.9.kind=jsonl", "trackers is a list of 2; name an item by index, 0 to 2"),
        ("exports.0=diffusers", 'exports is "auto", which has nothing below it'),
        ("train={steps: 1, steps: 2}", 'duplicate key "steps"; first on line 1'),
        ("train={steps: 1", 'not valid YAML: a "}" or "," is missing; it was opened on line 1'),
        ("train.seed=.nan", 'train.seed must be a whole number, is ".nan"'),
        ("metrics=" + "[" * 99, "nested deeper than 64 levels"),
    ],
)
def test_faults_are_named_by_the_option(base: Path, override: str, message: str) -> None:
    with pytest.raises(JobErrors) as caught:
        load_job(base, [override])
    (fault,) = caught.value.diagnostics
    assert (fault.line, fault.file) == (None, f"-o {override}")
    assert fault.headline().startswith(f"-o {override}: {message}")


def test_a_dumped_job_is_the_same_job_when_it_is_loaded(base: Path, tmp_path: Path) -> None:
    job = load_job(
        base,
        [
            "optimizer.lr=3e-7",
            "data.resolution=[64, 96]",
            "train.ema.decay=0.5",
            "exports=[diffusers]",
            "train.max_grad_norm=.inf",
            "name='0x10'",
            r'samples.prompts=["no", "1e-4", "a: b #c", "\u2028\x7f\e\n", "犬 😀", "-", " x "]',
        ],
    )
    text = dump_job(job, schema="job.schema.json")
    assert text.startswith("# yaml-language-server: $schema=job.schema.json\n")
    other = tmp_path / "elsewhere" / "job.yaml"
    other.parent.mkdir()
    other.write_text(text)
    assert load_job(other) == job


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_survives_the_way_to_a_file_and_back(
    tmp_path_factory: pytest.TempPathFactory, prompt: str
) -> None:
    data: dict[str, Any] = {"subject": {"identifier": prompt, "class_noun": "dog"}}
    job = Job.model_validate({**data, "data": {"kind": "folder", "path": "/pics"}})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_job(job), newline="")
    assert read_document(path).data["subject"]["identifier"] == prompt


def test_an_unknown_place_takes_the_nearest_one() -> None:
    document = Document("job.yaml", {})
    assert document.diagnostic(("a", "b"), "m").headline() == "job.yaml:1:1: m"
