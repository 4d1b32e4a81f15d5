"""`exports.every`: the result as it was at steps on the way, exactly, without changing a number."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from dreambooth import Job, api
from dreambooth.engine.events import Events
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results import on_the_way
from dreambooth.engine.results.draw import DrawRequest, draw_from_run
from dreambooth.engine.watching.stopping import LeftOut, StopRequest
from dreambooth.errors import JobError
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.identifiers import chosen_exporters
from dreambooth.jobs.loading import dump_job, load_job
from test_run import cut

ADAPTER = {"kind": "adapter", "train": ["unet", "text_encoder"]}
RUN = {
    "freezing": ADAPTER, "prior": "none", "optimizer": {"kind": "adamw", "lr": 1e-2},
    "train": {"steps": 6, "ema": {"decay": 0.9}}, "checkpoints": {"every": 4, "keep_last": 1},
}  # fmt: skip
EVERY = {"formats": ["lora", "kohya"], "every": 2}


def exported(folder):
    """Return name -> bytes of what was exported on the way, cards and their pictures left out."""
    return {
        path.relative_to(folder / "exports").as_posix(): path.read_bytes()
        for path in sorted((folder / "exports").rglob("*.*"))
        if "-step-" in path.parent.name and path.suffix == ".safetensors"
    }


def steps(folder):
    return sorted({path.name for path in (folder / "exports").glob("*-step-*")})


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make a job whose runs all tests here share: `make("cut", exports=EVERY)`."""
    pictures = tmp_path_factory.mktemp("pictures")
    for number, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (32, 32), color).save(pictures / f"{number}.png")
    output = tmp_path_factory.mktemp("runs")

    def job(name, **sections):
        return Job(
            **{
                "name": "small", "output": output / name,
                "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
                "subject": {"identifier": "ohwx", "class_noun": "dog"},
                "data": {"kind": "folder", "path": pictures, "resolution": 32},
                "sampler": {"kind": "cfg", "steps": 2}, "samples": {"every": 0},
                "log": {"every": 1}, "trackers": ["jsonl"], **RUN, **sections,
            }
        )  # fmt: skip

    return job


@pytest.fixture(scope="module")
def straight(make):
    """Train six steps with exports every two."""
    return run(make("straight", exports=EVERY)).folder


@pytest.fixture(scope="module")
def plain(make):
    """Train the same without them, every second checkpoint kept."""
    return run(
        make("plain", exports=["lora", "kohya"], checkpoints={"every": 2, "keep_last": 9})
    ).folder


def test_they_change_no_number_and_are_what_a_checkpoint_would_give(straight, plain):
    for name in ("metrics.jsonl", "final/pytorch_lora_weights.safetensors",
                 "exports/kohya/small.safetensors"):  # fmt: skip
        assert (straight / name).read_bytes() == (plain / name).read_bytes(), name
    assert steps(plain) == []
    assert steps(straight) == [
        f"{kind}-step-{step:06d}" for kind in ("kohya", "lora") for step in (2, 4, 6)
    ]
    for step in (2, 4):
        for kind in ("lora", "kohya"):
            api.export(plain, kind, step=step, check=step == 2, reporter=Quiet())
    ours, theirs = exported(straight), exported(plain)
    assert len(theirs) == 4
    assert {name: ours[name] for name in theirs} == theirs
    # Files of several steps lie in one folder of another program: their names say the step.
    file = straight / "exports/kohya-step-000004/small-step-000004.safetensors"
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert (about["ss_steps"], about["ss_output_name"]) == ("4", "small-step-000004")
    assert "| steps | 4 |" in (file.parent / "README.md").read_text()
    assert "small-step-000004.safetensors" in (file.parent / "README.md").read_text()


def test_a_run_that_was_cut_exports_the_same_and_the_newest_stay(make, monkeypatch, straight):
    job = make("cut", exports={**EVERY, "keep_last": 2})
    cut(job, 5, monkeypatch)
    assert steps(job.folder) == [f"{k}-step-{n:06d}" for k in ("kohya", "lora") for n in (2, 4)]
    run(job)
    kept = {name: data for name, data in exported(straight).items() if "step-000002" not in name}
    assert exported(job.folder) == kept
    assert steps(job.folder) == [f"{k}-step-{n:06d}" for k in ("kohya", "lora") for n in (4, 6)]
    # By hand at step 3, and of a life the run went back from: neither is touched.
    options = make("x", exports={**EVERY, "keep_last": 1}).exporting
    assert on_the_way.superseded(options, [2, 3, 4, 4, 8], 4) == [2]


def test_a_run_that_died_while_exporting_exports_anew(make, monkeypatch, straight):
    job = make("died", exports=EVERY)

    def dying(session, folder):
        if session.state.step == 4:
            raise KeyboardInterrupt
        return on_the_way.export_step(session, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Events, "export", lambda self: dying(self._session, self._folder))
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert "lora-step-000004" not in steps(job.folder)
    run(job)
    assert exported(job.folder) == exported(straight)


def test_asked_to_stop_it_leaves_the_export_for_the_next_life(make, monkeypatch, straight):
    job = make("left", exports=EVERY)

    class Gone(Exception):
        pass

    def leaving(self):
        raise LeftOut

    save = Events.save

    def saving(self):
        save(self)
        raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "before_leisure", leaving)
        patch.setattr(Events, "save", saving)
        with pytest.raises(Gone):
            run(job)
    assert steps(job.folder) == []
    assert (job.folder / "checkpoints/step-000004").is_dir()
    run(job)
    ours = exported(straight)
    left = {name: data for name, data in ours.items() if "step-000002" not in name}
    assert exported(job.folder) == left


def pixels(paths):
    return [np.asarray(Image.open(path)).tolist() for path in paths]


def test_the_grid_is_drawn_from_them(tmp_path, straight, plain, dbt):
    assert [p.name for p in (straight / "checkpoints").glob("step-*")] == ["step-000006"]
    result = dbt(
        "sample", straight, "a dog", "-n", 2, "--steps", "2,4,6", "--out", tmp_path / "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "6 pictures from steps 2, 4, 6" in result.stdout
    with Image.open(tmp_path / "out/grid.png") as sheet:
        assert sheet.height * 2 == sheet.width * 3
    record = json.loads((tmp_path / "out/step-000002/prompts.json").read_text())
    assert {(entry["step"], entry["weights"]) for entry in record} == {
        (2, "exports/kohya-step-000002")
    }
    # The same as from a checkpoint of that step.
    ours, theirs = (
        api.sample(folder, "a dog", count=2, step=(2, 4), reporter=Quiet())
        for folder in (straight, plain)
    )
    assert len(ours.files) == 4
    assert pixels(ours.files) == pixels(theirs.files)
    assert pixels(ours.files[:2]) != pixels(ours.files[2:])


def test_whole_models_on_the_way_are_drawn_from(make):
    """A word that is in a whole model cannot be learned on, but drawn."""
    freezing = {"kind": "components_and_token", "train": ["unet"], "lr": {"token": 1e-2}}
    job = make(
        "whole", freezing=freezing, optimizer={"kind": "adamw", "lr": 1e-3}, train={"steps": 4},
        subject={"identifier": "<x>", "class_noun": "dog"}, exports={"every": 2},
    )  # fmt: skip
    folder = run(job).folder
    assert steps(folder) == ["diffusers-step-000002", "diffusers-step-000004"]
    drawn = draw_from_run(
        folder, DrawRequest(["a {identifier} dog"], count=1, training_steps=[2]), Quiet()
    )
    assert (drawn.source, drawn.step) == ("exports/diffusers-step-000002", 2)
    with pytest.raises(JobError, match="is a whole model: it can be drawn from alone"):
        api.export(folder, "single_file", step=2, reporter=Quiet())
    shutil.rmtree(folder / "exports")
    with pytest.raises(JobError, match="no checkpoint of step 2, and no export of it"):
        api.sample(folder, "a dog", step=2, reporter=Quiet())


# --- how a job says it


def written(small_job, tmp_path, text):
    job = small_job(freezing="adapter")
    lines = dump_job(job).replace("exports: auto\n", f"exports: {text}\n")
    file = tmp_path / "job.yaml"
    file.write_text(lines)
    return file


@pytest.mark.parametrize(
    ("text", "kinds", "every"),
    [
        ("auto", ["lora"], 0),
        ("[kohya]", ["kohya"], 0),
        ("[]", [], 0),
        ("{every: 2}", ["lora"], 2),
        ("{formats: [lora, {kind: kohya, dtype: fp16}], every: 1, keep_last: 3}",
         ["lora", "kohya"], 1),
    ],
)  # fmt: skip
def test_every_way_to_say_it_is_read_and_written_again(small_job, tmp_path, text, kinds, every):
    job = load_job(written(small_job, tmp_path, text))
    assert [exporter.kind for exporter in chosen_exporters(job)] == kinds
    assert job.exporting.every == every
    assert preflight(job) == []
    again = tmp_path / "again.yaml"
    again.write_text(dump_job(job))
    assert load_job(again) == job


@pytest.mark.parametrize("text", ["auto", "[kohya]", "{formats: [kohya], keep_last: 2}"])
def test_an_override_reaches_the_option_whatever_the_file_says(small_job, tmp_path, text):
    job = load_job(written(small_job, tmp_path, text), ["exports.every=2"])
    assert job.exporting.every == 2
    assert [e.kind for e in chosen_exporters(job)] == ["lora" if text == "auto" else "kohya"]
    file = written(small_job, tmp_path, "[lora, kohya]")
    named = load_job(file, ["exports.1.dtype=fp16", "exports.every=2"])
    assert named.exporting.formats[1].dtype == "fp16"


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("{every: 5}", ("exports", "every"), "the run has 4"),
        ("{formats: [], every: 2}", ("exports", "every"), "no format to export in"),
        ("{keep_last: 2}", ("exports", "keep_last"), "nothing is exported before the end"),
        ("{formats: [lora, diffusers]}", ("exports", "formats", 1), "does not accept"),
    ],
)
def test_what_makes_no_sense_is_told_at_its_place(small_job, tmp_path, text, at, said):
    [problem] = preflight(load_job(written(small_job, tmp_path, text)))
    assert problem.at == at
    assert said in problem.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{evry: 2}", 'did you mean "every"?'),
        ("{formats: [kohia]}", 'did you mean "kohya"?'),
        ("{formats: [{kind: kohya, dtpye: fp16}]}", 'did you mean "dtype"?'),
        ("{every: often}", "must be a whole number"),
    ],
)
def test_a_typo_is_told(small_job, tmp_path, text, said):
    with pytest.raises(JobErrors) as caught:
        load_job(written(small_job, tmp_path, text))
    assert said in str(caught.value)


def test_the_plan_counts_them(make, tmp_path, straight, dbt):
    job = make("plan", exports={"formats": ["lora"], "every": 2, "keep_last": 1})
    (tmp_path / "job.yaml").write_text(dump_job(job))
    said = dbt("run", "--dry-run", tmp_path / "job.yaml", cwd=tmp_path).stdout
    [line] = [line for line in said.splitlines() if line.startswith("exports")]
    assert "every 2 steps, 3 of them" in line
    assert "the newest 1 are kept" in line
    told = float(line.split(" kB")[0].rsplit(" ", 1)[1])
    size = (straight / "final/pytorch_lora_weights.safetensors").stat().st_size
    assert told == pytest.approx(size / 1000, rel=0.3)
