"""Mistakes that only show when a job is looked at whole."""

from __future__ import annotations

import pytest

from dreambooth import JobError
from dreambooth.jobs.checks import preflight


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


def test_samples_need_a_prompt(small_job):
    with pytest.raises(JobError, match="at least 1 items"):
        small_job(samples={"prompts": []})
