"""Which job a run was started with: options that came later, and folders that moved."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dreambooth.errors import JobError
from dreambooth.job import Job
from dreambooth.jobs.changes import as_now, moved, paths
from dreambooth.runs.folder import RunFolder, check_resumable


@pytest.fixture
def make(tmp_path):
    """Make a job of a project folder: `make("project", train={"steps": 3})`."""

    def job(project="project", **sections):
        folder = tmp_path / project
        for name in ("pictures", "class"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / name / "0.png")
        return Job(**{
            "output": folder / "runs",
            "subject": {"identifier": "ohwx", "class_noun": "dog"},
            "data": {"kind": "folder", "path": folder / "pictures"},
            "prior": {"kind": "folder", "path": folder / "class"},
            "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
            **sections,
        })  # fmt: skip

    return job


@pytest.fixture
def begun(make):
    """Begin a run of a job and let the test edit what its manifest says of the job."""

    def begin(job, edit=lambda saved: None):
        folder = RunFolder(job.folder)
        folder.begin(job, "", 1)
        manifest = json.loads(folder.manifest.read_text())
        edit(manifest["job"])
        folder.manifest.write_text(json.dumps(manifest))
        return folder

    return begin


def without(*places):
    """Leave options out of a saved job, as an earlier version of the program did."""

    def remove(saved):
        for section, name in places:
            owner, key = (saved[section], name) if name else (saved, section)
            del owner[key]

    return remove


def test_an_option_that_came_later_has_its_default(make, begun):
    job = make()
    places = [("train", "max_grad_norm"), ("sampler", "negative"), ("validation", None)]
    folder = begun(job, without(*places))
    assert check_resumable(folder, job) == {}
    with pytest.raises(JobError, match=r"train.max_grad_norm: 1.0 -> 2.0"):
        check_resumable(folder, make(train={"max_grad_norm": 2.0}))


def test_what_this_version_does_not_take_is_told_and_nothing_else(make, begun):
    def older(saved):
        saved["optimizer"] = {"kind": "lion", "lr": 1e-4}
        saved["train"]["warp"] = 9
        del saved["sampler"]["negative"]
        saved["curriculum"] = {"easy": True}

    job = make()
    folder = begun(job, older)
    with pytest.raises(JobError) as caught:
        check_resumable(folder, job)
    names = {line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]}
    assert {"optimizer.kind", "train.warp", "curriculum.easy"} <= names
    assert not {name for name in names if name.startswith("sampler")}


def test_a_hub_id_stays_one_wherever_the_run_is_looked_at(make, tmp_path, monkeypatch):
    job = make(model={"kind": "stable_diffusion", "source": "org/name"})
    saved = job.resolved()
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert as_now(saved, job, job.folder)["model"]["source"] == "org/name"


def test_the_paths_of_a_job_are_known_by_their_type(make, tmp_path):
    job = make(model={"kind": "stable_diffusion", "source": str(tmp_path)})
    assert paths(job).keys() == {"output", "data.path", "prior.path", "model.source"}
    assert "model.source" not in paths(make())


def test_a_project_folder_that_moved_is_the_same_job(make, begun):
    folder = begun(make("before"))
    here = make("after")
    changed = check_resumable(folder, here)
    assert changed.keys() == {"output", "data.path", "prior.path"}
    assert moved(changed) == {"data"}  # compared once the pictures have been read


def test_other_files_at_a_new_place_are_another_job(make, begun):
    folder = begun(make("before"))
    here = make("after")
    (here.prior.path / "0.png").write_bytes(b"another")
    with pytest.raises(JobError, match=r"prior\.path"):
        check_resumable(folder, here)


def test_a_prompt_that_looks_like_a_path_is_a_prompt(make, begun):
    def job(prompt):
        data = {"kind": "folder", "path": make().data.path, "prompt": prompt}
        return make(data=data)

    folder = begun(job("/a {identifier} {class_noun}"))
    with pytest.raises(JobError, match=r"data\.prompt"):
        check_resumable(folder, job("/b {identifier} {class_noun}"))
