"""Mistakes that only show when a job is looked at whole."""

from __future__ import annotations

import pytest

from dreambooth.aliases import ALIASES
from dreambooth.checks import preflight
from dreambooth.diagnostics import JobErrors
from dreambooth.jobfile import load_job


@pytest.mark.parametrize(
    ("sections", "at"),
    [
        ({"subject": {"identifier": "Dog", "class_noun": "dog"}}, ("subject", "identifier")),
        (
            {"lr_schedule": {"kind": "constant", "warmup_steps": 4}},
            ("lr_schedule", "warmup_steps"),
        ),
        ({"prior": {"prompt": "a photo of a {noun}"}}, ("prior", "prompt")),
        ({"samples": {"prompts": ["a {subject}"]}}, ("samples", "prompts", 0)),
    ],
)
def test_it_is_found_where_it_stands(small_job, sections, at):
    assert at in [problem.at for problem in preflight(small_job(**sections))]


def test_a_folder_of_class_images_must_hold_some(small_job, tmp_path):
    (tmp_path / "class").mkdir()
    [problem] = preflight(small_job(prior={"kind": "folder", "path": tmp_path / "class"}))
    assert problem.at == ("prior", "path")


def test_names_of_other_trainers_are_translated(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("learning_rate: 1e-4\ntrain: {max_train_steps: 5}\n")
    with pytest.raises(JobErrors) as caught:
        load_job(path)
    text = caught.value.render()
    assert 'unknown key "learning_rate"; here it is called optimizer.lr' in text
    assert 'unknown key "max_train_steps"; here it is called train.steps' in text


def test_every_translation_names_a_place_that_exists(small_job):
    job = small_job()
    for target in ALIASES.values():
        section, _, option = target.split(":")[0].split("{")[0].strip().partition(".")
        assert section in type(job).model_fields, target
        if option and option != "kind":
            assert option in type(getattr(job, section)).model_fields, target


def test_samples_need_a_prompt(small_job):
    with pytest.raises(ValueError, match="at least 1 item"):
        small_job(samples={"prompts": []})
