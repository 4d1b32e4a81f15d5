"""Prompts with settings of their own, in the job and in a file."""

from __future__ import annotations

import pytest

from dreambooth.component.previews import SamplePrompt
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import check_job, dump_job, load_job
from dreambooth.jobs.samplers import read_prompts

JOB = """\
version: 1
model: {{kind: stable_diffusion, source: builtin:tiny}}
subject: {{identifier: ohwx, class_noun: dog}}
data: {{kind: folder, path: pictures, resolution: 32}}
samples:
  {samples}
"""


def job_file(tmp_path, samples):
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(samples=samples))
    return path


def test_entries_are_texts_or_mappings_and_survive_the_resolved_job(tmp_path, pictures):
    path = job_file(
        tmp_path,
        "prompts: [a dog, {prompt: '{identifier}', seed: 7, size: [32, 64], negative: x}]",
    )
    job = check_job(path)
    assert job.samples.prompts[0] == "a dog"
    assert job.samples.entries[1] == SamplePrompt(
        prompt="{identifier}", seed=7, size=(32, 64), negative="x"
    )
    again = tmp_path / "again.yaml"
    again.write_text(dump_job(job))
    assert load_job(again) == job
    assert "seed: 7" in again.read_text()
    assert job.resolved()["samples"]["prompts"][1].keys() == {"prompt", "seed", "size", "negative"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{prompt: a, sede: 1}", 'unknown key "sede"; did you mean "seed"?'),
        ("{prompt: a, seed: x}", "samples.prompts.0.seed must be a whole number"),
        ("{seed: 1}", 'needs "prompt"'),
        ("7", "samples.prompts.0"),
        ("''", "samples.prompts.0 must not be empty"),
        ("{prompt: '{noun}'}", "nothing fills in {noun}"),
        ("{prompt: a, size: 33}", "33 is not a multiple of"),
    ],
)
def test_a_wrong_entry_is_told_with_its_place(tmp_path, pictures, entry, said):
    path = job_file(tmp_path, f"prompts: [{entry}]")
    with pytest.raises(JobErrors) as error:
        check_job(path)
    assert said in str(error.value)
    assert f"{path}:6:" in str(error.value)


def test_a_file_of_prompts_is_written_out_in_the_job(tmp_path, pictures):
    (tmp_path / "prompts.yaml").write_text(
        "prompts:\n  - a {class_noun}\n  - {prompt: b, steps: 3}\n"
    )
    job = load_job(job_file(tmp_path, "prompts_file: prompts.yaml"))
    assert job.samples.prompts == ["a {class_noun}", SamplePrompt(prompt="b", steps=3)]
    assert job.samples.prompts_file is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts:\n  - {prompt: a, sede: 1}\n", 'prompts.yaml:2:17: unknown key "sede"'),
        ("prompts: []\n", "prompts.yaml:1:10"),
        ("prompt: [a]\n", 'prompts.yaml:1:1: unknown key "prompt"; did you mean "prompts"?'),
        ("prompts: [a, 'b {noun}']\n", "prompts.yaml:1:14: nothing fills in {noun}"),
    ],
)
def test_faults_in_a_file_of_prompts_have_line_and_column(tmp_path, text, said):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(JobErrors) as error:
        read_prompts(path)
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JobErrors, match="no such file"):
        read_prompts(tmp_path / "away.yaml")
