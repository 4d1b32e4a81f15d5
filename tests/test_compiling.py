"""`train.compile`: decided once, kept by a resumed run, given up where the compiler fails."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from dreambooth import run
from dreambooth.engine import loop, step
from dreambooth.engine.devices.automatic import Size, compiling_pays
from dreambooth.engine.reporting import Quiet

STEPS = {"steps": 3, "precision": "fp32"}
SD15 = Size(859_520_964, 64 * 64)


@pytest.fixture
def compiler(monkeypatch):
    """Stand in for torch.compile: calls are counted and computed plainly."""
    calls = []

    def compile(call):
        def compiled(*args, **kwargs):
            calls.append(call.__self__)
            return call(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    return calls


def manifest(result):
    return json.loads((result.folder / "manifest.json").read_text())


def weights(result):
    [path] = (result.folder / "final" / "unet").glob("*.safetensors")
    return load_file(path)


def test_steps_run_through_what_was_compiled_and_samples_do_not(small_job, compiler):
    samples = {"every": 1, "per_prompt": 1, "prompts": ["a photo of a {class_noun}"]}
    result = run(small_job(train={**STEPS, "compile": True}, samples=samples))
    assert manifest(result)["compiled"] is True
    # One pass to compile, then one a step; the text encoder trains too.
    named = [type(module).__name__ for module in compiler]
    assert named.count("UNet2DConditionModel") == named.count("CLIPTextModel") == 1 + 3


def test_compiling_by_itself_changes_no_number(small_job, compiler):
    plain = run(small_job(name="plain", train=STEPS))
    compiled = run(small_job(name="compiled", train={**STEPS, "compile": True}))
    assert compiler
    theirs = weights(compiled)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, theirs[name]), name


def test_auto_leaves_short_runs_alone(small_job, compiler):
    result = run(small_job(train={**STEPS, "compile": "auto"}))
    assert manifest(result)["compiled"] is False
    assert not compiler


@pytest.mark.parametrize(
    ("device", "size", "rows", "expected"),
    [
        ("cuda", SD15, 20_000, True),
        ("cuda", SD15, 19_999, False),
        ("cuda", Size(SD15.parameters, 32 * 32), 40_000, False),  # a quarter of the work a row
        ("cuda", Size(SD15.parameters, 32 * 32), 80_000, True),
        ("cuda", Size(9_000_000, 64 * 64), 1_000_000, False),
        ("cpu", SD15, 1_000_000, False),
        ("mps", SD15, 1_000_000, False),
    ],
)
def test_auto_is_a_rule_of_device_size_and_rows_to_come(device, size, rows, expected):
    assert compiling_pays(device, size, rows) is expected


def test_auto_counts_the_rows_of_the_steps_ahead(small_job, compiler, monkeypatch):
    asked = []
    monkeypatch.setattr(step, "compiling_pays", lambda *seen: asked.append(seen) or True)
    train = {**STEPS, "compile": "auto", "batch_size": 2, "accumulation": 2}
    assert manifest(run(small_job(train=train)))["compiled"] is True
    [(device, size, rows)] = asked
    assert (device, size.cells) == ("cpu", 8 * 8)
    assert rows == 3 * 2 * 2 * 2  # steps, batches, instance rows, and a class row for each
    assert compiler


def test_a_resumed_run_keeps_what_was_decided(small_job, compiler, monkeypatch):
    monkeypatch.setattr(step, "long_enough", lambda s: True)
    job = small_job(train={**STEPS, "compile": "auto"}, checkpoints={"every": 1})
    train_step = loop.train_step

    def cut(session):
        if session.state.step == 2:
            raise KeyboardInterrupt
        return train_step(session)

    monkeypatch.setattr(loop, "train_step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(loop, "train_step", train_step)

    def unasked(s):
        raise AssertionError("a resumed run does not decide again")

    monkeypatch.setattr(step, "long_enough", unasked)
    assert manifest(run(job))["compiled"] is True


def test_where_the_compiler_fails_the_run_goes_on_without(small_job, monkeypatch):
    def broken(call):
        def compiled(*args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand more")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    warnings = []

    class Heard(Quiet):
        def warn(self, message):
            warnings.append(message)

    result = run(small_job(train={**STEPS, "compile": True}), reporter=Heard())
    assert manifest(result)["compiled"] is False
    assert "torch.compile failed, going on without: no C++ compiler" in warnings


@pytest.mark.slow
def test_really_compiled_steps_agree_with_plain_ones(small_job):
    plain = run(small_job(name="plain", train=STEPS))
    compiled = run(small_job(name="compiled", train={**STEPS, "compile": True}))
    assert manifest(compiled)["compiled"] is True
    for name, value in plain.scalars.items():
        assert compiled.scalars[name] == pytest.approx(value, rel=1e-4), name
