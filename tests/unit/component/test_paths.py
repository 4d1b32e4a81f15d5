"""Paths in a job: the home folder, environment variables, and what a dollar sign is otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.component import escape_variables, expand_variables
from dreambooth.job import Job
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import dump_job, load_job

JOB = """\
output: "{output}"
model: {{kind: stable_diffusion, source: "{source}"}}
subject: {{identifier: ohwx, class_noun: dog}}
data: {{kind: folder, path: "{path}"}}
prior: {{kind: folder, path: "{prior}"}}
freezing: {{kind: adapter, init: "{init}"}}
"""
PLACES = {"output": "runs", "source": "builtin:tiny", "path": "p", "prior": "q", "init": "i"}


def write(folder: Path, **places: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB.format(**PLACES | places))
    return path


def test_variables_and_home_are_filled_in_wherever_a_path_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OUT": "/scratch", "MODELS": "/models", "WHO": "me", "HOME": "/h"}.items():
        monkeypatch.setenv(name, value)
    job = load_job(
        write(tmp_path, output="${OUT}/runs", source="$MODELS/sd15", path="~/$WHO/dog",
              prior="${MODELS}/class-$WHO", init="$WHO.safetensors")
    )  # fmt: skip
    assert job.output == Path("/scratch/runs")
    assert job.model.key()["source"] == "/models/sd15"
    assert job.data.key()["path"] == "/h/me/dog"
    assert job.prior.key()["path"] == "/models/class-me"
    assert job.freezing.key()["init"] == str(tmp_path / "me.safetensors")
    assert load_job(write(tmp_path), ["data.path=$WHO"]).data.key()["path"] == str(tmp_path / "me")


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_an_error_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    if value is not None:
        monkeypatch.setenv("NOWHERE", value)
    path = write(tmp_path, output="${NOWHERE}/runs", source="$NOWHERE/sd", path="a/$NOWHERE")
    with pytest.raises(JobErrors) as caught:
        load_job(path)
    said = [d.headline().removeprefix(f"{path}:") for d in caught.value.diagnostics]
    unset = 'the environment variable "NOWHERE" is not set; $$ is a plain dollar sign'
    assert said == [
        f"1:9: output: {unset}", f"2:41: model.source: {unset}", f"4:28: data.path: {unset}"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["a$$b", "$$HOME", "cost $5", "end$", "${", "$-x", "a$$$$b"])
def test_other_dollar_signs_stay_and_come_back(text: str) -> None:
    literal = expand_variables(text)
    assert literal == text.replace("$$", "$")
    assert expand_variables(escape_variables(literal)) == literal


def test_a_resolved_job_keeps_folders_with_dollar_signs(tmp_path: Path) -> None:
    source = str(tmp_path / "$$HOME")
    job = load_job(write(tmp_path, output="$$HOME/runs", path="$$$$x", source=source))
    assert job.output == tmp_path / "$HOME" / "runs"
    (tmp_path / "resolved.yaml").write_text(dump_job(job))
    assert load_job(tmp_path / "resolved.yaml") == job
    assert job.model.at(tmp_path / "$HOME") == job.model


def test_from_python_a_path_is_taken_as_it_is_and_a_text_expanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUT", "/scratch")
    options = {"subject": {"identifier": "ohwx", "class_noun": "dog"}}
    job = Job(**options, output="$OUT", data={"kind": "folder", "path": Path("/a/$OUT")})
    assert job.output == Path("/scratch")
    assert job.data.path == Path("/a/$OUT")


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("path", [r".\runs\test\new", r"C:\base\new", r"C:\ve\fe"])
def test_backslashes_in_double_quotes_are_told_at_the_path(
    tmp_path: Path, place: str, path: str
) -> None:
    with pytest.raises(JobErrors) as caught:
        load_job(write(tmp_path, **{place: path}))
    [found] = caught.value.diagnostics
    key = {"source": "model.source", "path": "data.path", "prior": "prior.path",
           "init": "freezing.init"}.get(place, place)  # fmt: skip
    assert found.message.startswith(f"{key}: ")
    assert "use single quotes or forward slashes" in found.message
    assert [p.name for p in tmp_path.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize("path", [r"C:\Users\me", r"C:\users\me", r"C:\xylophone", r"C:\my"])
def test_an_unknown_escape_says_what_to_write(tmp_path: Path, path: str) -> None:
    with pytest.raises(JobErrors, match="double quotes means something else") as caught:
        load_job(write(tmp_path, path=path))
    assert "single quotes" in str(caught.value)
