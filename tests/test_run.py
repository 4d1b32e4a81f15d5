"""A whole run: what it makes, what it says, and how it goes on."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError, RunError
from dreambooth.plugins import registry_with


class Listening(Quiet):
    def __init__(self):
        self.lines = []

    def info(self, message):
        self.lines.append(message)

    def warn(self, message):
        self.lines.append(message)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return {
        f"{part}/{name}": tensor
        for part in ("unet", "text_encoder")
        for file in (folder / "final" / part).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_run_leaves_a_pipeline_that_draws(small_job):
    result = run(small_job(samples={"every": 2, "per_prompt": 2}))
    assert result.steps == 4
    pipeline = StableDiffusionPipeline.from_pretrained(result.final)
    pipeline.set_progress_bar_config(disable=True)
    [image] = pipeline("a photo of ohwx dog", num_inference_steps=2, height=32, width=32).images
    assert image.size == (32, 32)
    for step in (2, 4):
        folder = result.folder / f"samples/step-{step:06d}"
        assert len(list(folder.glob("0*.png"))) == 4
        with Image.open(folder / "000.png") as picture:
            facts = json.loads(picture.text["dreambooth"])
        assert facts["prompt"] == "a photo of ohwx dog"
        assert facts["step"] == step
    assert [line["step"] for line in lines(result.folder)] == [1, 2, 3, 4]
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["trainable"]["unet"] > 0
    assert "info trained to step 4" in (result.folder / "run.log").read_text()
    assert {p["name"] for p in manifest["plugins"]} >= {"default-loss", "default-prior"}
    assert manifest["images"].keys() == {"0.png", "1.png", "2.png"}


def test_training_lowers_the_loss_on_what_it_sees(small_job):
    job = small_job(prior="none", train={"steps": 60, "batch_size": 3}, optimizer={"lr": 3e-3})
    losses = [line["train/loss"] for line in lines(run(job).folder)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_fp32_gives_the_same_numbers_on_every_run(small_job):
    first = run(small_job(name="one"))
    second = run(small_job(name="two"))
    assert_equal_weights(weights(first.folder), weights(second.folder))
    one, two = (r.folder / "metrics.jsonl" for r in (first, second))
    assert one.read_bytes() == two.read_bytes()


def test_two_jobs_of_different_precision_in_one_process_equal_two_processes(small_job):
    alone = run(small_job(name="alone"))
    run(small_job(name="half", train={"precision": "bf16"}))
    after = run(small_job(name="after"))
    assert_equal_weights(weights(alone.folder), weights(after.folder))


class StopAfter(Exception):
    pass


def cut(job, step, monkeypatch):
    """Run `job` and pull the plug after `step`, as a kill between two steps would."""
    from dreambooth.engine.events import Events

    after_step = Events.after_step

    def dying(self, result):
        after_step(self, result)
        if self._session.state.step == step:
            raise StopAfter

    with monkeypatch.context() as patch:
        patch.setattr(Events, "after_step", dying)
        with pytest.raises(StopAfter):
            run(job)


def test_a_cut_export_is_done_again_without_drawing_again(small_job, monkeypatch, tmp_path):
    from dreambooth_plugins.exporter import Diffusers

    job = small_job(samples={"every": 3, "per_prompt": 2}, metrics=["diversity"])
    with monkeypatch.context() as patch:

        def dying(*_):
            raise StopAfter

        patch.setattr(Diffusers, "write", dying)
        with pytest.raises(StopAfter):
            run(job)
    before = (job.folder / "metrics.jsonl").read_bytes()
    assert not (job.folder / "final").exists()
    grid = job.folder / "samples/step-000004/grid.png"
    grid.unlink()
    assert run(job).final.is_dir()
    assert (job.folder / "metrics.jsonl").read_bytes() == before
    assert not grid.exists()


def test_a_device_that_is_none_is_named(small_job):
    for name in ("meta", "cuda:97", "toaster"):
        with pytest.raises(JobError, match=r"train\.device"):
            run(small_job(train={"device": name}))


def test_the_callers_random_state_is_left_alone(small_job):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    run(small_job())
    assert torch.equal(torch.randn(4), expected)


def test_samples_change_nothing_in_training(small_job):
    without = run(small_job(name="without"))
    with_them = run(small_job(name="with", samples={"every": 1, "per_prompt": 1}))
    assert_equal_weights(weights(without.folder), weights(with_them.folder))


def test_a_finished_run_says_so_and_more_steps_continue_it(small_job):
    run(small_job())
    again = run(small_job())
    assert again.already_finished
    longer = run(small_job(train={"steps": 6}))
    assert not longer.already_finished
    straight = run(small_job(name="straight", train={"steps": 6}))
    assert_equal_weights(weights(longer.folder), weights(straight.folder))


def test_another_job_under_the_same_name_is_refused_and_fresh_moves_the_old_aside(small_job):
    run(small_job())
    changed = small_job(optimizer={"lr": 5e-4})
    with pytest.raises(JobError, match=r"optimizer\.lr: 0\.001 -> 0\.0005"):
        run(changed)
    result = run(changed, fresh=True)
    assert (result.folder.parent / "small.old-1/final").is_dir()


def test_inputs_that_changed_between_two_lives_are_named(small_job, pictures):
    run(small_job())
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    (pictures / "2.png").unlink()
    listening = Listening()
    run(small_job(train={"steps": 5}), reporter=listening)
    assert "picture 0.png changed since the run began" in listening.lines
    assert "picture 2.png came or went since the run began" in listening.lines
    assert not [line for line in listening.lines if "1.png" in line and "began" in line]


def test_a_machine_that_changed_between_two_lives_is_named(small_job):
    result = run(small_job())
    path = result.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["machine"] |= {"torch": "1.0", "threads": 99}
    path.write_text(json.dumps(manifest))
    listening = Listening()
    run(small_job(train={"steps": 5}), reporter=listening)
    said = [line for line in listening.lines if "when the run began" in line]
    assert [line.split(" was ")[0] for line in said] == ["threads", "torch"]
    assert "torch was 1.0 when the run began and is 2." in said[1]


def test_frozen_parts_are_untouched_and_hold_no_optimizer_state(small_job, tiny_model):
    result = run(small_job(freezing={"kind": "components", "train": ["unet"]}))
    base = load_file(tiny_model / "text_encoder/model.safetensors")
    tuned = load_file(result.final / "text_encoder/model.safetensors")
    assert all(torch.equal(base[name], tensor) for name, tensor in tuned.items())
    state = load_file(result.folder / "checkpoints/step-000004/optimizer.safetensors")
    assert {name.split(".")[0] for name in state} == {"unet"}


def test_bfloat16_runs_train_unrounded_masters(small_job, tiny_model):
    result = run(small_job(name="bf16", train={"precision": "bf16"}, optimizer={"lr": 1e-6}))
    base = load_file(tiny_model / "unet/diffusion_pytorch_model.safetensors")
    tuned = load_file(result.final / "unet/diffusion_pytorch_model.safetensors")
    # Rounded masters would lie up to 2^-9 of a weight away; four steps of 1e-6 lie nearer.
    assert max(float((base[n] - t).abs().max()) for n, t in tuned.items()) < 2e-5


def test_training_that_moves_nothing_is_a_failure(small_job, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    with pytest.raises(RunError, match="nothing that should train has moved"):
        run(small_job())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_exactly(small_job, monkeypatch, precision):
    options = {"train": {"precision": precision, "steps": 5}, "checkpoints": {"every": 2}}
    straight = run(small_job(name="straight", **options))
    resumed = small_job(name="resumed", **options)
    cut(resumed, 3, monkeypatch)
    assert_equal_weights(weights(straight.folder), weights(run(resumed).folder))


def test_gradient_checkpointing_changes_memory_not_numbers(small_job):
    plain = run(small_job(name="plain"))
    job = small_job(name="less", train={"gradient_checkpointing": True})
    for one, two in zip(lines(plain.folder), lines(run(job).folder), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(small_job):
    with pytest.raises(RunError, match=r"not finite at step \d+: \d\.png \(timestep \d+\)"):
        run(small_job(optimizer={"lr": 1e30}, train={"max_grad_norm": None, "steps": 10}))


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(small_job, monkeypatch):
    from dreambooth_plugins.tracker.jsonl import Jsonl

    def broken(self, ctx, resume_step):
        raise ConnectionError("server away")

    monkeypatch.setattr(Jsonl, "open", broken)
    listening = Listening()
    assert run(small_job(), reporter=listening).steps == 4
    said = [line for line in listening.lines if "server away" in line]
    assert len(said) == 1
    assert 'tracker "jsonl" failed' in said[0]


def test_metrics_and_callbacks_take_part(small_job):
    result = run(
        small_job(
            samples={"every": 2, "per_prompt": 2},
            metrics=["diversity"],
            callbacks=[{"kind": "time_limit", "minutes": 1e-9}],
        )
    )
    assert result.steps == 1  # stopped by the time limit, saved and exported
    assert result.scalars["metric/diversity"] > 0
    assert result.final.is_dir()
    goes_on = run(small_job(samples={"every": 2, "per_prompt": 2}, metrics=["diversity"]))
    assert goes_on.steps == 4


def test_a_policy_that_names_strangers_is_a_plugin_fault(small_job):
    from typing import Literal

    from dreambooth import FreezingPolicy, hookimpl
    from dreambooth.errors import PluginError

    class Wrong(FreezingPolicy):
        """Names a parameter that is none."""

        kind: Literal["wrong"] = "wrong"

        def trainable(self, model):
            return {"unet.nothing": torch.nn.Parameter(torch.zeros(1))}

    class Plugin:
        @hookimpl
        def register_freezing_policies(self):
            return [Wrong]

    with registry_with(Plugin()), pytest.raises(PluginError, match="no parameter of the model"):
        run(small_job(freezing="wrong"))


def test_an_identifier_that_is_chosen_stays_the_same_and_is_written_down(small_job, pictures):
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    auto = {"subject": {"identifier": "auto", "class_noun": "dog"}}
    listening = Listening()
    first = run(small_job(train={"steps": 1}, **auto), reporter=listening)
    text = (first.folder / "job.yaml").read_text()
    assert "identifier: auto" not in text
    run(small_job(train={"steps": 2}, **auto), reporter=listening)
    assert "resuming from step 1 of 2" in listening.lines
    assert (first.folder / "job.yaml").read_text() == text.replace("steps: 1", "steps: 2")
