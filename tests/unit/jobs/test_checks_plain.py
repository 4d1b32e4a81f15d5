"""Mistakes that only show when a job is looked at whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

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


def test_class_images_are_found_as_pictures_are(small_job, tmp_path):
    inner = tmp_path / "reg" / "1_dog"
    inner.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(inner / "0.png")
    [problem] = preflight(small_job(prior={"kind": "folder", "path": tmp_path / "reg"}))
    assert problem.at == ("prior", "path")
    assert "1 lie in its folder '1_dog'" in problem.message
    assert f"prior.path to {inner}" in problem.hint
    [problem] = preflight(small_job(prior={"kind": "folder", "path": tmp_path / "rge"}))
    assert f"Did you mean {tmp_path / 'reg'}?" in problem.hint
    assert preflight(small_job(prior={"kind": "folder", "path": inner})) == []


def test_the_subjects_own_pictures_are_no_class_images(small_job, tmp_path):
    own = Path(small_job().data.path)
    (tmp_path / "link").symlink_to(own)
    for path in (own, tmp_path / "link", own / ".." / own.name):
        [problem] = preflight(small_job(prior={"kind": "folder", "path": path}))
        assert problem.at == ("prior", "path")
        assert "the subject's own pictures" in problem.message


@pytest.mark.parametrize("kind", ["generated", "mirror", "folder"])
@pytest.mark.parametrize(
    ("prompt", "named"),
    [("ohwx, a dog", True), ("Ohwx dog", True), ("a dog (OHWX)", True), ("{identifier} dog", True),
     ("a ohwxs dog", False), ("a dog", False)],
)  # fmt: skip
def test_a_class_prompt_must_not_name_the_subject(small_job, tmp_path, kind, prompt, named):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    more = {"path": tmp_path} if kind == "folder" else {}
    problems = preflight(small_job(prior={"kind": kind, "prompt": prompt, **more}))
    told = [p for p in problems if p.at == ("prior", "prompt")]
    assert [p.message for p in told] == ["the class prompt names the identifier"] * named


def test_samples_need_a_prompt(small_job):
    with pytest.raises(JobError, match="at least 1 items"):
        small_job(samples={"prompts": []})
