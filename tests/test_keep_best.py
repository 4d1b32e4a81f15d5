"""The best checkpoint: the right one, exported, and the same however often a run was cut."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dreambooth.engine.checkpoints import files as checkpoint
from dreambooth.engine.events import Events
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.draw import DrawRequest, draw_from_run
from dreambooth.errors import RunError
from dreambooth.jobs.checks import preflight

# At this rate the loss goes up and down, so that the best step is not the last.
BUMPY = {
    "optimizer": {"lr": 1e-2},
    "train": {"steps": 9},
    "validation": {"every": 1, "rows": 4, "holdout": 1},
    "checkpoints": {"every": 3, "keep_last": 1, "keep_best": {}},
    "prior": "none",
}


@pytest.fixture
def bumpy(small_job):
    def make(name="small", **sections):
        merged = {
            k: {**BUMPY[k], **v} if isinstance(v, dict) and isinstance(BUMPY.get(k), dict) else v
            for k, v in sections.items()
        }
        return small_job(name=name, **{**BUMPY, **merged})

    return make


class Listening(Quiet):
    def __init__(self):
        self.lines = []

    def info(self, message):
        self.lines.append(message)

    def warn(self, message):
        self.lines.append(message)


def curve(folder, name="validation/loss"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def lowest(values):
    """Return the step of the lowest value after step 0, and the values it was chosen from."""
    trained = {step: value for step, value in values.items() if step}
    return min(trained, key=trained.get), trained


def exported(folder):
    files = sorted((folder / "final").rglob("*.safetensors"))
    return {f"{f.parent.name}/{n}": t for f in files for n, t in load_file(f).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def there(folder):
    return [step for step, _ in checkpoint.list_checkpoints(folder / "checkpoints")]


class Dies(Exception):
    pass


def cut(job, step, monkeypatch):
    """Run `job` and pull the plug after `step`."""
    after_step = Events.after_step

    def dying(self, result):
        after_step(self, result)
        if self._session.state.step == step:
            raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(Events, "after_step", dying)
        with pytest.raises(Dies):
            run(job)


def test_the_best_step_is_kept_exported_and_named(bumpy):
    listening = Listening()
    result = run(bumpy(), reporter=listening)
    best, values = lowest(curve(result.folder))
    assert 1 < best < 9
    assert there(result.folder) == [best, 9]
    assert result.steps == 9
    assert result.kept == f"step {best}: validation/loss {values[best]:.4g}, the lowest of 9"
    assert f"kept {result.kept}" in listening.lines
    assert f"info kept {result.kept}" in (result.folder / "run.log").read_text()
    kept = json.loads((result.folder / "manifest.json").read_text())["result"]["kept"]
    assert (kept["step"], kept["value"], kept["exported"]) == (best, values[best], True)
    # A run that ends at that step makes the same weights.
    shorter = run(bumpy("shorter", train={"steps": best}, checkpoints={"keep_best": None}))
    assert_equal(exported(result.folder), exported(shorter.folder))


def test_kept_but_not_exported(bumpy):
    result = run(bumpy(checkpoints={"keep_best": {"export": False}}))
    best, _ = lowest(curve(result.folder))
    assert there(result.folder) == [best, 9]
    assert result.kept.endswith("(the last step is exported)")
    plain = run(bumpy("plain", checkpoints={"keep_best": None}))
    assert plain.kept == ""
    assert there(plain.folder) == [9]
    assert_equal(exported(result.folder), exported(plain.folder))


def test_any_logged_number_will_do(bumpy):
    rule = {"metric": "train/loss", "mode": "max"}
    result = run(bumpy(checkpoints={"keep_best": rule}, validation={"every": 0, "holdout": 0}))
    values = curve(result.folder, "train/loss")
    best = max(values, key=values.get)
    assert result.kept == f"step {best}: train/loss {values[best]:.4g}, the highest of 9"
    assert best in there(result.folder)


RULES = {
    "validation": {},
    "average": {"train": {"steps": 9, "ema": {"decay": 0.5}}},
    "rare checkpoints": {"checkpoints": {"every": 50, "keep_last": 1, "keep_every": 4}},
    "a metric of the samples": {
        "samples": {"every": 2, "per_prompt": 2},
        "metrics": ["diversity"],
        "checkpoints": {"keep_best": {"metric": "metric/diversity", "mode": "max"}},
    },
    "patience": {"early_stop": {"kind": "patience", "patience": 3}, "samples": {"every": 50}},
}


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_cut_and_resumed_keeps_the_same_step(bumpy, monkeypatch, options):
    straight = run(bumpy("straight", **options))
    assert straight.kept
    resumed = bumpy("resumed", **options)
    for step in (2, 5):
        cut(resumed, step, monkeypatch)
    result = run(resumed)
    assert (result.kept, result.stopped, result.steps) == (
        straight.kept,
        straight.stopped,
        straight.steps,
    )
    one, two = (r.folder / "metrics.jsonl" for r in (straight, result))
    assert one.read_bytes() == two.read_bytes()
    assert there(straight.folder) == there(result.folder)
    assert_equal(exported(straight.folder), exported(result.folder))
    states = [
        json.loads((r.folder / f"checkpoints/step-{r.steps:06d}/state.json").read_text())
        for r in (straight, result)
    ]
    assert states[0] == states[1]


def test_more_steps_go_on_from_the_newest_not_from_the_best(bumpy):
    first = run(bumpy())
    listening = Listening()
    longer = run(bumpy(train={"steps": 12}), reporter=listening)
    assert "resuming from step 9 of 12" in listening.lines
    straight = run(bumpy("straight", train={"steps": 12}))
    states = [
        load_file(r.folder / "checkpoints/step-000012/trainable.safetensors")
        for r in (longer, straight)
    ]
    assert_equal(*states)
    assert curve(longer.folder) == curve(straight.folder)
    assert longer.kept == straight.kept
    assert first.kept != longer.kept


def test_a_checkpoint_that_cannot_be_written_costs_no_older_one(bumpy, monkeypatch):
    straight = run(bumpy("straight"))
    best, _ = lowest(curve(straight.folder))
    job = bumpy()
    save = checkpoint.save_file

    def full(tensors, path):
        if f"step-{best:06d}" in str(path):
            raise OSError(28, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(RunError, match="No space left"):
            run(job)
    before = there(job.folder)
    assert before
    assert best not in before
    for _, path in checkpoint.list_checkpoints(job.folder / "checkpoints"):
        checkpoint.load(path)
    result = run(job)
    assert result.kept == straight.kept
    assert_equal(exported(result.folder), exported(straight.folder))


def test_a_damaged_best_one_is_named_with_the_way_out(bumpy):
    result = run(bumpy())
    best, _ = lowest(curve(result.folder))
    shutil.rmtree(result.final)
    (result.folder / f"checkpoints/step-{best:06d}/trainable.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=f"step {best}, the best one, is damaged") as caught:
        run(bumpy())
    assert "checkpoints.keep_best.export=false" in caught.value.hint
    assert run(bumpy(checkpoints={"keep_best": {"export": False}})).final.is_dir()


def test_a_number_that_never_came_is_said(bumpy):
    listening = Listening()
    options = {"metrics": ["diversity"], "samples": {"every": 9, "per_prompt": 2}}
    rule = {"metric": "metric/divresity"}
    result = run(bumpy(checkpoints={"keep_best": rule}, **options), reporter=listening)
    assert result.kept == ""
    assert any("metric/divresity was never logged" in line for line in listening.lines)
    assert result.final.is_dir()


def test_pictures_are_drawn_from_the_best_step(bumpy, monkeypatch):
    job = bumpy(checkpoints={"every": 8})
    cut(job, 8, monkeypatch)
    best, _ = lowest(curve(job.folder))
    newest = there(job.folder)[-1]
    assert best < newest
    request = DrawRequest(["a photo of ohwx dog"], count=1)
    assert draw_from_run(job.folder, request, Quiet()).source == f"step-{best:06d}"
    run(job)
    assert draw_from_run(job.folder, request, Quiet()).source == "final"


@pytest.mark.parametrize(
    ("sections", "said", "hint"),
    [
        ({}, '"validation/loss" is never logged: validation is off', "set validation.every"),
        (
            {
                "validation": {"every": 5},
                "checkpoints": {"keep_best": {"metric": "validation/los"}},
            },
            'no number is logged as "validation/los"',
            'did you mean "validation/loss"?',
        ),
        (
            {"checkpoints": {"keep_best": {"metric": "trian/loss"}}},
            'no number is logged as "trian/loss"',
            'did you mean "train/loss"?',
        ),
        (
            {"checkpoints": {"keep_best": {"metric": "metric/diversity"}}},
            "measures nothing on its samples",
            "name a metric in metrics",
        ),
        (
            {"checkpoints": {"keep_best": {"metric": "metric/x"}}, "metrics": ["diversity"]},
            "none are drawn",
            "set samples.every",
        ),
        (
            {"checkpoints": {"keep_best": {"metric": "train/loss_prior"}}, "prior": "none"},
            'prior kind "none" brings none',
            "use train/loss",
        ),
    ],
)
def test_a_number_that_can_never_come_is_found_beforehand(small_job, sections, said, hint):
    [problem] = preflight(small_job(**{"checkpoints": {"keep_best": {}}, **sections}))
    assert problem.at == ("checkpoints", "keep_best", "metric")
    assert said in problem.message
    assert hint in problem.hint


def test_a_plugins_own_number_is_taken_on_trust(small_job):
    assert preflight(small_job(checkpoints={"keep_best": {"metric": "my/number"}})) == []


def test_held_out_pictures_without_an_evaluation_are_found(small_job):
    [problem] = preflight(small_job(validation={"holdout": 1}))
    assert problem.at == ("validation", "holdout")
