"""A run on disk: its lock, its manifest, and which changes of a job it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dreambooth.errors import JobError, RunError
from dreambooth.job import Job
from dreambooth.runs.folder import RunFolder, check_resumable, differences


@pytest.fixture
def job(tmp_path):
    return Job(
        output=tmp_path,
        subject={"identifier": "ohwx", "class_noun": "dog"},
        data={"kind": "folder", "path": tmp_path},
        model={"kind": "stable_diffusion", "source": "builtin:tiny"},
    )


def changed(job, **sections):
    data = job.model_dump()
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    return Job.model_validate(data)


def test_differences_are_named_by_their_place(job):
    other = changed(job, train={"steps": 9})
    assert differences(job.resolved(), other.resolved()) == {"train.steps": (400, 9)}


def test_harmless_changes_are_reported_and_taken(job):
    folder = RunFolder(job.folder)
    folder.begin(job, "", 1)
    other = changed(job, train={"steps": 900}, log={"every": 1})
    assert check_resumable(folder, other) == {"train.steps": (400, 900), "log.every": (10, 1)}


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"lr": 1e-3}},
        {"train": {"seed": 1}},
        {"subject": {"class_noun": "cat"}},
        {"loss": {"prior_weight": 0.5}},
    ],
)
def test_other_changes_are_refused_and_shown(job, sections):
    folder = RunFolder(job.folder)
    folder.begin(job, "", 1)
    [(section, option)] = sections.items()
    with pytest.raises(JobError, match=f"{section}.{next(iter(option))}") as caught:
        check_resumable(folder, changed(job, **sections))
    assert "--fresh" in caught.value.hint


def test_more_steps_are_refused_where_the_schedule_depends_on_the_end(job):
    cosine = changed(job, lr_schedule="cosine")
    folder = RunFolder(cosine.folder)
    folder.begin(cosine, "", 1)
    with pytest.raises(JobError, match=r"train\.steps"):
        check_resumable(folder, changed(cosine, train={"steps": 900}))


def test_setting_aside_deletes_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for n in (1, 2):
        folder.path.mkdir()
        (folder.path / "x").write_text(str(n))
        assert folder.set_aside() == tmp_path / f"run.old-{n}"
    assert (tmp_path / "run.old-1/x").read_text() == "1"


HOLD = """
import sys
from pathlib import Path
from dreambooth.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process"), folder.lock():
            pass
        holder.kill()
    with folder.lock():
        assert folder.path.is_dir()


def test_an_unreadable_manifest_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.manifest.write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json"):
        folder.read_manifest()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(JobError, match="cannot write into") as caught,
        RunFolder(tmp_path / "file/run").lock(),
    ):
        pass
    assert "output" in caught.value.hint
