"""Whole runs with adapters: they learn, leave the base alone, resume, and open elsewhere."""

from __future__ import annotations

import json
import shutil
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dreambooth import hookimpl
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.draw import DrawRequest, draw_from_run
from dreambooth.engine.results.exports import export_all
from dreambooth.engine.step import train_step
from dreambooth.plugins import registry_with
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.loss import PriorPreservation
from learning import frozen_hashes, learn
from test_run import cut, lines

BOTH = ["unet", "text_encoder"]
LORA = {"kind": "lora", "rank": 4}
POLICIES = {
    "lora": {"method": LORA},
    "lora on both": {"method": LORA, "train": BOTH, "lr": {"text_encoder": 5e-3}},
    "lora on the text encoder": {"train": ["text_encoder"], "targets": "attention+mlp"},
    "lora on convolutions": {"targets": ["conv"]},
    "dora": {"method": {"kind": "dora", "rank": 4}},
    "loha": {"method": "loha"},
    "lokr": {"method": "lokr"},
    "oft": {"method": {"kind": "oft", "block_size": 8}},
    "boft": {"method": "boft"},
}


def adapter(**options):
    return {"kind": "adapter", **options}


@pytest.mark.parametrize("options", POLICIES.values(), ids=POLICIES)
def test_it_learns_leaves_the_rest_alone_and_opens_elsewhere(open_for, options):
    session = open_for(
        freezing=adapter(**options),
        prior="none",
        optimizer={"lr": 1e-2},
        train={"batch_size": 3, "steps": 15},
    )
    assert session.model.parts["unet"] is not None  # read now, where it does not train
    frozen = frozen_hashes(session)
    assert len(frozen) > 200
    before, after = learn(session, 15)
    assert after < 0.93 * before
    assert frozen_hashes(session) == frozen
    optimizer = session.state.optimizer
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in session.state.parameters.values()}
    assert all("default" in name for name in session.state.parameters)
    [export] = export_all(session, RunFolder(session.job.folder))
    assert export.folder == session.job.folder / "final"
    assert export.kind == (
        "lora" if session.job.freezing.method.kind in ("lora", "dora") else "merged"
    )
    assert export.check.figures["denoiser"] <= 1e-5
    assert export.check.figures["latents"] <= (1e-4 if export.kind == "lora" else 1e-3)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("kind", ["lora", "kohya", "merged"])
def test_plain_diffusers_draws_the_picture_that_dbt_sample_draws(small_job, tiny_model, kind):
    freezing = adapter(method={"kind": "lora", "rank": 4, "alpha": 1}, train=BOTH)
    result = run(small_job(freezing=freezing, optimizer={"lr": 1e-2}, exports=[kind]))
    prompt = "a photo of ohwx dog"
    drawn = draw_from_run(result.folder, DrawRequest([prompt], count=1), Quiet())
    [facts] = json.loads((drawn.grid.parent / "prompts.json").read_text())
    pipe = StableDiffusionPipeline.from_pretrained(result.final if kind == "merged" else tiny_model)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )
    pipe.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 2,
        "height": 32,
        "width": 32,
        "latents": torch.randn(
            (1, 4, 8, 8), generator=torch.Generator().manual_seed(facts["seed"])
        ),
    }
    plain = np.asarray(pipe(prompt, **options).images[0], dtype=np.int16)
    if kind != "merged":
        pipe.load_lora_weights(result.final)
        with_file = np.asarray(pipe(prompt, **options).images[0], dtype=np.int16)
        assert np.abs(with_file - plain).max() > 5
        plain = with_file
    assert np.abs(plain - pixels(drawn.grid.parent / "000.png")).max() <= 1


def test_drawing_needs_no_checkpoint(small_job):
    result = run(small_job(freezing=adapter(train=BOTH), optimizer={"lr": 1e-2}))
    request = DrawRequest(["a photo of ohwx dog"], count=1)
    one = draw_from_run(result.folder, request, Quiet())
    shutil.rmtree(result.folder / "checkpoints")
    two = draw_from_run(result.folder, request, Quiet())
    assert (one.source, two.source) == ("step-000004", "final")
    assert np.array_equal(pixels(one.grid), pixels(two.grid))


METHODS = {
    "dora": {"kind": "dora", "rank": 4, "dropout": 0.3},
    "loha": {"kind": "loha", "rank_dropout": 0.2, "module_dropout": 0.3},
    "lokr": {"kind": "lokr", "module_dropout": 0.3},
    "oft": {"kind": "oft", "block_size": 8, "dropout": 0.3},
    "boft": {"kind": "boft", "dropout": 0.3},
}


SELDOM = {"lokr", "oft", "boft"}
"""Draw their dropout as another one does: they take their turn in the slow tests."""


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(options, id=name, marks=[pytest.mark.slow] if name in SELDOM else [])
        for name, options in METHODS.items()
    ],
)
def test_every_method_resumes_exactly(small_job, monkeypatch, method):
    options = {
        "freezing": adapter(method=method),
        "prior": "none",
        "checkpoints": {"every": 2},
        "train": {"steps": 3},
    }
    straight = run(small_job(name="straight", **options))
    job = small_job(name="resumed", **options)
    cut(job, 2, monkeypatch)
    resumed = run(job)
    for file in ("trainable", "optimizer"):
        one, two = (
            r.folder.joinpath(f"checkpoints/step-000003/{file}.safetensors").read_bytes()
            for r in (straight, resumed)
        )
        assert one == two


def test_gradient_checkpointing_changes_memory_not_numbers(small_job):
    options = {
        "freezing": adapter(train=BOTH, method={"kind": "lora", "rank": 4, "dropout": 0.2}),
        "optimizer": {"lr": 1e-2},
    }
    plain = run(small_job(name="plain", **options))
    job = small_job(name="less", train={"gradient_checkpointing": True}, **options)
    for one, two in zip(lines(plain.folder), lines(run(job).folder), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
        assert one["train/grad_norm"] == pytest.approx(two["train/grad_norm"], rel=1e-4)


def test_gradient_checkpointing_recomputes_the_adapted_layers(open_for):
    seen = {}
    for name, wanted in (("plain", False), ("less", True)):
        session = open_for(
            name=name, freezing=adapter(train=BOTH), prior="none",
            train={"gradient_checkpointing": wanted},
        )  # fmt: skip
        calls = []
        for part, module in (("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
                             ("text_encoder", "encoder.layers.0.self_attn.q_proj")):  # fmt: skip
            layer = session.model.parts[part].get_submodule(module)
            layer.register_forward_hook(lambda *_, part=part, calls=calls: calls.append(part))
        train_step(session)
        seen[name] = sorted(calls)
    assert seen == {"plain": ["text_encoder", "unet"], "less": ["text_encoder"] * 2 + ["unet"] * 2}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_half_precision_base_trains_float32_adapters(open_for, precision):
    session = open_for(precision, freezing=adapter(train=BOTH), prior="none")
    held = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    frozen = [p for part in BOTH for p in session.model.parts[part].parameters()]
    frozen = [p for p in frozen if not any(p is q for q in session.state.parameters.values())]
    assert {p.dtype for p in frozen} == {held}
    before, after = learn(session, 4)
    assert {p.dtype for p in session.state.parameters.values()} == {torch.float32}
    moments = session.state.optimizer.state.values()
    assert {v.dtype for s in moments for v in s.values()} == {torch.float32}
    assert after < before


def test_a_half_precision_run_keeps_updates_smaller_than_half_precision(open_for):
    session = open_for("bf16", freezing=adapter(), prior="none", optimizer={"lr": 1e-7})
    ups = {n: p for n, p in session.state.parameters.items() if "lora_A" in n}
    before = {n: p.detach().clone() for n, p in ups.items()}
    for _ in range(3):
        train_step(session)
    moved = max(float((p.detach() - before[n]).abs().max()) for n, p in ups.items())
    assert 0 < moved < 1e-5


class Looking(PriorPreservation):
    """Asks for the base's prediction at each step and makes no use of it."""

    kind: Literal["looking"] = "looking"
    needs = frozenset({"reference"})


class Plugin:
    @hookimpl
    def register_losses(self):
        return [Looking]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_looking_at_the_base_changes_nothing_in_training(small_job, checkpointing):
    options = {
        "freezing": adapter(train=BOTH, until={"text_encoder": 2}),
        "train": {"gradient_checkpointing": checkpointing},
        "prior": "none",
    }
    results = []
    with registry_with(Plugin()):
        for loss in ("prior_preservation", "looking"):
            result = run(small_job(name=loss, loss=loss, **options))
            results.append(
                load_file(result.folder / "checkpoints/step-000004/trainable.safetensors")
            )
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_an_average_is_exported(small_job):
    job = small_job(
        freezing=adapter(), optimizer={"lr": 1e-2}, train={"ema": {"decay": 0.5}, "steps": 3}
    )
    result = run(job)
    averaged = load_file(result.folder / "checkpoints/step-000003/ema.safetensors")
    written = load_file(result.final / "pytorch_lora_weights.safetensors")
    assert len(written) == len(averaged)
    for name, tensor in averaged.items():
        assert torch.equal(written[name.replace(".default.", ".")], tensor)
    trained = load_file(result.folder / "checkpoints/step-000003/trainable.safetensors")
    assert any(not torch.equal(trained[n], averaged[n]) for n in trained)


def test_somebodys_lora_goes_on_training(small_job):
    freezing = adapter(method={"kind": "lora", "rank": 4, "alpha": 1})
    first = run(small_job(name="first", freezing=freezing, exports=["kohya"]))
    more = run(small_job(name="more", freezing=adapter(init=str(first.final))))
    at_end = load_file(first.folder / "checkpoints/step-000004/trainable.safetensors")
    later = load_file(more.folder / "checkpoints/step-000004/trainable.safetensors")
    assert later.keys() == at_end.keys()
    apart = [float((later[n] - at_end[n]).abs().max()) for n in at_end]
    assert all(0 < d < 0.02 for d in apart)  # four steps of 1e-3 on from there, not from zero
    assert "rank 4, alpha 1, from final" in (more.folder / "run.log").read_text()
