"""Plugins that misbehave while a run goes on are told by name, and what was saved is kept."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import yaml_text
from dreambooth import Callback, Metric, Tracker, hookimpl
from dreambooth.engine.checkpoints.files import list_checkpoints
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import EXIT_PLUGIN, PluginError, RunError
from dreambooth.interfaces import (
    Artifact,
    Observer,
    ParameterGroup,
    PriorRow,
    Stop,
)
from dreambooth.plugins import registry_with
from dreambooth.plugins.faults import plugin_fault
from dreambooth.plugins.kinds import component
from dreambooth.plugins.slots import SLOTS


def overriding(base, **methods):
    """Make a class that is `base` but for some methods, each given the original answer's maker."""

    def method(name, act):
        def call(self, *args, **kwargs):
            return act(self, lambda: getattr(super(cls, self), name)(*args, **kwargs), *args)

        return call

    made = {name: method(name, act) for name, act in methods.items()}
    cls = type(base)(f"Bad{base.__name__}", (base,), {"__module__": __name__, **made})
    return cls


def bad(slot, kind, **methods):
    """Return a component of a default kind that does something else in some methods."""
    good = component(slot, kind) if isinstance(kind, str) else kind
    return overriding(type(good), **methods)(**good.model_dump())


def raising(self, answer, *args):
    raise RuntimeError("the moon is full")


def leaving(self, answer, *args):
    sys.exit(0)


def giving(value):
    """Answer something that does not depend on what was asked."""
    return lambda self, answer, *args: value


def making(change):
    """Answer what the good method answers, changed."""
    return lambda self, answer, *args: change(answer())


def opening(**methods):
    """Let `open` return an object that misbehaves in some methods."""

    def act(self, answer, *args):
        opened = answer()
        opened.__class__ = overriding(type(opened), **methods)
        return opened

    return act


NAN = math.nan


class Watching(Observer):
    """Watches and says nothing."""

    def on(self, event, view):
        return None


class Watch(Callback):
    """Watches."""

    kind: str = "watch"

    def open(self, ctx):
        return Watching()


class Ones(Metric):
    """Scores 1."""

    kind: str = "ones"

    def score(self, samples, instances, ctx):
        return {"ones": 1.0}


def nan(tensor):
    return torch.full_like(tensor, NAN)


def pixels(change):
    return making(lambda sample: replace(sample, pixels=change(sample.pixels)))


def drawn(**change):
    return opening(draw=making(lambda d: replace(d, **{k: f(d) for k, f in change.items()})))


def with_row(row):
    return opening(rows=lambda self, answer, indices, step: [row] * len(indices))


def grouped(**options):
    def act(self, answer, names):
        return [ParameterGroup(tuple(names), **options)]

    return act


def negative(self, answer, groups):
    optimizer = answer()
    optimizer.param_groups[0]["lr"] = -1e-3
    return optimizer


def empty_mean(self, answer, s):
    return answer() * 0 + s.pred.square().flatten(1).mean(1).detach().new_full((len(s.t),), NAN)


ROW = PriorRow("a photo of a dog", torch.zeros(4, 8, 8))
SAMPLES = {"samples": {"every": 1, "prompts": ["a dog"], "per_prompt": 1}}

# What misbehaves (slot, kind), in which method, how, and what is said of it; {} may be options of
# the job that bring the method into play.
CASES: dict[str, tuple[str, Any, dict[str, Any], str, dict[str, Any]]] = {
    "data raises": ("data", None, {"load": raising}, "load", {}),
    "data leaves": ("data", None, {"scan": leaving}, "scan", {}),
    "data: no scan": ("data", None, {"scan": giving([])}, "returned [] where a Scan", {}),
    "data: nothing found": (
        "data", None, {"scan": making(lambda scan: replace(scan, items=()))}, "found no image", {},
    ),
    "data: twins": (
        "data", None, {"scan": making(lambda s: replace(s, items=s.items * 2))}, "two items", {},
    ),
    "data: size": ("data", None, {"load": pixels(lambda p: p[:16])}, "pixels ndarray [16, 32", {}),
    "data: type": (
        "data", None, {"load": pixels(lambda p: p / 255)}, "[32, 32, 3] float64 where", {},
    ),
    "data: mask": (
        "data", None,
        {"load": making(lambda s: replace(s, mask=np.full((32, 32), NAN, np.float32)))},
        "a mask with values outside of 0..1", {},
    ),
    "data: prompt": ("data", None, {"row_prompt": giving(None)}, "returned None where a text", {}),
    "data: key": ("data", None, {"pixels_key": giving({"a": {1}})}, "no JSON data", {}),
    "data: variants": ("data", None, {"variants": giving(0)}, "returned 0 where a count", {}),
    "prior raises": ("prior", "none", {"open": raising}, "open", {}),
    "prior set raises": ("prior", "none", {"open": opening(rows=raising)}, "rows", {}),
    "prior leaves": ("prior", "none", {"open": leaving}, "open", {}),
    "prior: no set": ("prior", "none", {"open": giving(None)}, "None where a PriorSet", {}),
    "prior: no rows": (
        "prior", "none", {"open": opening(rows=giving(None))}, "a list of PriorRows", {},
    ),
    "prior: shape": (
        "prior", "none", {"open": with_row(replace(ROW, latents=torch.zeros(4, 4, 4)))},
        "latents [4, 4, 4] where instance rows have [4, 8, 8]", {},
    ),
    "prior: values": (
        "prior", "none", {"open": with_row(replace(ROW, latents=nan(ROW.latents)))},
        "not finite", {},
    ),
    "freezing raises": ("freezing", "components", {"trainable": raising}, "trainable", {}),
    "freezing leaves": ("freezing", "components", {"prepare": leaving}, "prepare", {}),
    "freezing: list": (
        "freezing", "components", {"trainable": giving([1])}, "a mapping of names", {},
    ),
    "freezing: strangers": (
        "freezing", "components",
        {"trainable": giving({"unet.mine": torch.nn.Parameter(torch.ones(2))})},
        "'unet.mine', which is no parameter of the model under that name", {},
    ),
    "freezing: negative rate": (
        "freezing", "components", {"groups": grouped(lr=-1.0)}, "lr -1.0, which must be 0", {},
    ),
    "freezing: groups": ("freezing", "components", {"groups": giving([])}, "is not once", {}),
    "freezing: stages": ("freezing", "components", {"stages": giving([0])}, "Stages are", {}),
    "freezing: no end": ("freezing", "components", {"stages": giving([])}, "stages end at", {}),
    "freezing after a step": ("freezing", "components", {"after_step": raising}, "after_step", {}),
    "freezing: artifact": (
        "freezing", "components", {"artifact": giving(Artifact("adapter", {}))},
        "an artifact 'adapter'", {},
    ),
    "loss raises": ("loss", "prior_preservation", {"rows": raising}, "rows", {}),
    "loss leaves": ("loss", "prior_preservation", {"rows": leaving}, "rows", {}),
    "loss: shape": (
        "loss", "prior_preservation", {"rows": making(lambda r: r[:, None].expand(-1, 3))},
        "returned Tensor [1, 3] float32 where Tensor [1] float32", {},
    ),
    "loss: one number": (
        "loss", "prior_preservation", {"rows": making(lambda r: r.mean())}, "Tensor [] float32", {},
    ),
    "loss: values": ("loss", "prior_preservation", {"rows": empty_mean}, "not finite", {}),
    "loss: no gradient": (
        "loss", "prior_preservation", {"rows": making(torch.Tensor.detach)}, "no gradient", {},
    ),
    "scheduler raises": ("scheduler", "ddpm", {"open": raising}, "open", {}),
    "scheduler leaves": ("scheduler", "ddpm", {"open": opening(draw=leaving)}, "draw", {}),
    "scheduler: timesteps": (
        "scheduler", "ddpm", {"open": drawn(t=lambda d: d.t[:, None])}, "returned t Tensor", {},
    ),
    "scheduler: noise": (
        "scheduler", "ddpm", {"open": drawn(noise=lambda d: d.noise[..., :4])}, "noise Tensor", {},
    ),
    "scheduler: noise is NaN": (
        "scheduler", "ddpm", {"open": drawn(noise=lambda d: nan(d.noise))}, "not finite", {},
    ),
    "scheduler: target": (
        "scheduler", "ddpm", {"open": opening(target=making(lambda t: t[:, :1]))},
        "where Tensor [1, 4, 8, 8] is wanted", {},
    ),
    "scheduler: target is NaN": (
        "scheduler", "ddpm", {"open": opening(target=making(nan))}, "not finite", {},
    ),
    "sampler raises": ("sampler", "cfg", {"sample": raising}, "sample", SAMPLES),
    "sampler leaves": ("sampler", "cfg", {"sample": leaving}, "sample", SAMPLES),
    "sampler: size": (
        "sampler", "cfg", {"sample": making(lambda z: z[..., :4])}, "[1, 4, 8, 4] float32", SAMPLES,
    ),
    "sampler: values": ("sampler", "cfg", {"sample": making(nan)}, "latents that are not", SAMPLES),
    "sampler of class images": (
        "sampler", "cfg", {"sample": making(nan)}, "latents that are not",
        {"prior": {"kind": "generated", "count": 2, "batch_size": 2, "prompt": "a bad dog"}},
    ),
    "optimizer raises": ("optimizer", "adamw", {"build": raising}, "build", {}),
    "optimizer leaves": ("optimizer", "adamw", {"build": leaving}, "build", {}),
    "optimizer: none": ("optimizer", "adamw", {"build": giving(None)}, "None where a torch", {}),
    "optimizer: negative rate": (
        "optimizer", "adamw", {"build": negative}, "the learning rate -0.001", {},
    ),
    "lr schedule raises": ("lr_schedule", "constant", {"factor": raising}, "factor", {}),
    "lr schedule leaves": ("lr_schedule", "constant", {"factor": leaving}, "factor", {}),
    "lr schedule: negative": (
        "lr_schedule", "constant", {"factor": giving(-1.0)}, "-1.0 where a finite number", {},
    ),
    "lr schedule: NaN": ("lr_schedule", "constant", {"factor": giving(NAN)}, "nan where a", {}),
    "lr schedule: text": ("lr_schedule", "constant", {"factor": giving("1")}, "'1' where a", {}),
    "metric raises": ("metrics", Ones(), {"score": raising}, "score", SAMPLES),
    "metric leaves": ("metrics", Ones(), {"score": leaving}, "score", SAMPLES),
    "metric: text": ("metrics", Ones(), {"score": giving({"a": "b"})}, "names to numbers", SAMPLES),
    "metric: NaN": ("metrics", Ones(), {"score": giving({"a": NAN})}, "'a': nan", SAMPLES),
    "callback raises": ("callbacks", Watch(), {"open": raising}, "open", {}),
    "callback leaves": ("callbacks", Watch(), {"open": opening(on=leaving)}, "on", {}),
    "callback: none": ("callbacks", Watch(), {"open": giving(None)}, "None where an Observer", {}),
    "callback: text": (
        "callbacks", Watch(), {"open": opening(on=giving("stop"))}, "'stop' where Save(), Stop", {},
    ),
    "callback: reason": (
        "callbacks", Watch(), {"open": opening(on=giving(Stop(5)))}, "a reason is a text", {},
    ),
    "callback: state": (
        "callbacks", Watch(), {"open": opening(state=giving({"a": {1}}))}, "no JSON data", {},
    ),
    "callback: state is NaN": (
        "callbacks", Watch(), {"open": opening(state=giving({"a": NAN}))}, "no JSON data", {},
    ),
    "callback: state of tuples": (
        "callbacks", Watch(), {"open": opening(state=giving({"a": (1,)}))}, "something else", {},
    ),
    "exporter raises": ("exports", "diffusers", {"write": raising}, "write", {}),
    "exporter leaves": ("exports", "diffusers", {"verify": leaving}, "verify", {}),
    "exporter: nothing": ("exports", "diffusers", {"write": giving(None)}, "wrote no file", {}),
    "exporter: check": ("exports", "diffusers", {"verify": giving(True)}, "True where a Check", {}),
    "model raises": ("model", None, {"open": opening(denoise=raising)}, "denoise", {}),
    "model leaves": ("model", None, {"open": leaving}, "open", {}),
    "model: prediction": (
        "model", None, {"open": opening(denoise=making(lambda p: p[:, :2]))},
        "where Tensor [1, 4, 8, 8] is wanted", {},
    ),
    "model: latents": (
        "model", None, {"open": opening(encode_images=giving(None))}, "None where Latents",
        {"train": {"cache": False, "steps": 1}},
    ),
}  # fmt: skip


def job_with(small_job, field, kind, methods, options):
    base = {"prior": "none", "trackers": [], "train": {"steps": 1}, **options}
    job = small_job(**base)
    is_list = field in {"metrics", "callbacks", "exports"}
    wrong = bad(SLOT_OF[field], getattr(job, field) if kind is None else kind, **methods)
    return job.model_copy(update={field: [wrong] if is_list else wrong})


SLOT_OF = {name: slot.name for slot in SLOTS.values() for name in slot.fields}


@pytest.mark.parametrize("name", CASES)
def test_a_plugin_that_misbehaves_is_named(small_job, name):
    field, kind, methods, words, options = CASES[name]
    if (
        field == "data" and name != "data: key"
    ):  # kept latents of an earlier test would stand in for its pictures
        options = {**options, "train": {**options.get("train", {}), "cache": False}}
    job = job_with(small_job, field, kind, methods, options)
    with pytest.raises(PluginError) as caught:
        run(job)
    error = caught.value
    assert error.exit_code == EXIT_PLUGIN
    said = error.message
    log = (job.folder / "run.log").read_text()
    slot = SLOT_OF[field]
    assert said.startswith("test_plugin_faults.Bad"), said
    assert f' (in no plugin), {slot} "' in said
    assert "(test_plugin_faults.py:" in said
    if name.endswith("raises"):
        assert f"{words}() (" in said
        assert said.endswith("RuntimeError: the moon is full")
        assert "Traceback (most recent call last)" in log
        assert 'raise RuntimeError("the moon is full")' in log
    elif name.endswith("leaves"):
        assert f"{words}() (" in said
        assert said.endswith("asked the program to end (exit code 0)")
    else:
        assert words in said


class Listening(Quiet):
    def __init__(self):
        self.warned = []

    def warn(self, message):
        self.warned.append(message)


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def failing_at(step, event="step"):
    def on(self, answer, now, view):
        if (now, view.step) == (event, step):
            raise RuntimeError("the moon is full")

    return bad("callback", Watch(), open=opening(on=on))


@pytest.mark.parametrize("event", ["step", "log"])
def test_what_a_callback_raises_ends_the_run_once_the_step_is_saved(small_job, event):
    options = {"prior": "none", "train": {"steps": 3}, "exports": ["diffusers"]}
    job = small_job(name="cut", **options)
    with pytest.raises(PluginError, match=r'callback "watch", on\(\) .*the moon is full') as caught:
        run(job.model_copy(update={"callbacks": [failing_at(2, event)]}))
    assert [step for step, _ in list_checkpoints(job.folder / "checkpoints")] == [2]
    assert len(lines(job.folder)) == 2
    assert "the checkpoint of step 2 is intact" in caught.value.hint
    run(job)
    straight = run(small_job(name="straight", **options))
    assert lines(job.folder) == lines(straight.folder)


def test_a_failing_callback_is_not_asked_again_and_the_others_are(small_job):
    heard = []

    def on(self, answer, event, view):
        heard.append((event, view.step))

    other = bad("callback", Watch(), open=opening(on=on))
    job = small_job(prior="none").model_copy(update={"callbacks": [failing_at(1), other]})
    with pytest.raises(PluginError, match="the moon is full"):
        run(job)
    assert heard == [("start", 0), ("step", 1), ("log", 1), ("checkpoint", 1)]


def test_the_last_checkpoint_is_kept_whatever_fails(small_job):
    job = small_job(prior="none", train={"steps": 2}, checkpoints={"every": 1})

    def second(self, answer, step, steps):
        if step:
            raise RuntimeError("the moon is full")
        return answer()

    wrong = bad("lr_schedule", "constant", factor=second)
    with pytest.raises(PluginError) as caught:
        run(job.model_copy(update={"lr_schedule": wrong}))
    assert [step for step, _ in list_checkpoints(job.folder / "checkpoints")] == [1]
    assert caught.value.hint == (
        "this is a fault of the plugin, not of the job; the traceback is in "
        f"{job.folder / 'run.log'}, and the checkpoint of step 1 is intact"
    )


class Stumbling(torch.optim.SGD):
    """Its step is no method of a component."""

    def step(self, closure=None):
        raise RuntimeError("the moon is full")


class Wild(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("the moon is full")


@pytest.mark.parametrize(
    ("field", "kind", "methods", "method"),
    [
        (
            "optimizer",
            "adamw",
            {"build": lambda self, answer, groups: Stumbling(groups, lr=self.lr)},
            "step",
        ),
        ("loss", "prior_preservation", {"rows": making(Wild.apply)}, "backward"),
    ],
)
def test_code_that_no_method_calls_is_known_by_its_package(small_job, field, kind, methods, method):
    job = job_with(small_job, field, kind, methods, {})
    with pytest.raises(PluginError, match=rf'{field} ".*", {method}\(\) \(test_plugin_faults.py:'):
        run(job)


def test_who_asked_is_named_where_one_plugin_calls_another(small_job):
    def sample(self, answer, model, prompts):
        return model.denoise(torch.zeros(1, 7, 8, 8), torch.zeros(1), None)

    job = job_with(small_job, "sampler", "cfg", {"sample": sample}, SAMPLES)
    with pytest.raises(PluginError) as caught:
        run(job)
    said = caught.value.message
    assert said.startswith('plugin "default-model" (dreambooth-trainer ')
    assert 'model "stable_diffusion", denoise() (dreambooth_plugins/model/clip_unet.py:' in said
    assert "; asked by test_plugin_faults.BadClassifierFreeGuidance (in no plugin), samp" in said


def test_what_a_plugin_changes_for_all_is_put_back_and_told_once(small_job):
    def rows(self, answer, s):
        made = answer()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return made

    told = Listening()
    job = job_with(small_job, "loss", "prior_preservation", {"rows": rows}, {"train": {"steps": 2}})
    result = run(job, reporter=told)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    [remark] = told.warned
    assert 'loss "prior_preservation", rows() (test_plugin_faults.py:' in remark
    assert remark.endswith(
        "changed torch's default type to torch.float64 and torch's gradients to off, "
        "which was put back"
    )
    plain = run(small_job(name="plain", prior="none", train={"steps": 2}))
    assert result.scalars["train/loss"] == plain.scalars["train/loss"]


def test_a_tracker_that_leaves_is_left_out_like_one_that_raises(small_job):
    class Leaving(Tracker):
        kind: str = "leaving"

        def open(self, ctx, resume_step):
            sys.exit(0)

    told = Listening()
    run(small_job(prior="none", train={"steps": 1}, trackers=[Leaving()]), reporter=told)
    assert told.warned == ['tracker "leaving" failed and is left out from here on: SystemExit: 0']


def test_what_the_system_refuses_is_the_plugins_fault_unless_it_is_ours(small_job, pictures):
    def scan(self, answer, ctx):
        return Path("/nowhere/labels.csv").read_text()

    with pytest.raises(PluginError, match=r"scan\(\) .*: FileNotFoundError: .*labels.csv"):
        run(job_with(small_job, "data", None, {"scan": scan}, {}))

    def losing(self, answer, ctx):
        (pictures / "0.png").unlink()
        return answer()

    with pytest.raises((OSError, RunError), match=r"0\.png"):
        run(job_with(small_job, "model", None, {"open": losing}, {"train": {"cache": False}}))


def test_an_error_for_the_person_passes_as_it_is(small_job):
    def scan(self, answer, ctx):
        raise RunError("the camera is off", "switch it on")

    with pytest.raises(RunError, match="the camera is off"):
        run(job_with(small_job, "data", None, {"scan": scan}, {}))


def test_a_fault_of_the_engine_is_nobody_elses(small_job, monkeypatch):
    from dreambooth.engine import step

    def broken(*_):
        raise KeyError("ours")

    monkeypatch.setattr(step, "shares", broken)
    with pytest.raises(KeyError, match="ours"):
        run(small_job(prior="none"))
    assert plugin_fault(KeyError("ours")) is None


class Eclipse(type(component("lr_schedule", "constant"))):
    """Raises, when it is asked."""

    kind: Literal["eclipse"] = "eclipse"
    when: Literal["rate", "check"] = "rate"
    """Where."""

    def check(self, job, info):
        if self.when == "check":
            sys.exit(0)
        return ()

    def factor(self, step, steps):
        raise RuntimeError("the moon is full")


class Plugin:
    @hookimpl
    def register_lr_schedules(self):
        return [Eclipse]


def test_the_command_line_ends_with_the_code_of_plugins(small_job, tmp_path, dbt):
    with registry_with(Plugin()):
        job = small_job(prior="none", lr_schedule={"kind": "eclipse"})
        path = yaml_text.write(job, tmp_path / "job.yaml")
        done = dbt("run", path, cwd=tmp_path)
        assert done.returncode == EXIT_PLUGIN
        first, hint = done.stderr.splitlines()
        assert first.startswith(
            'error: plugin "Plugin" (registered here), lr_schedule "eclipse", factor() ('
        )
        assert first.endswith("RuntimeError: the moon is full")
        assert hint == (
            "  hint: this is a fault of the plugin, not of the job; the traceback is in "
            f"{job.folder / 'run.log'}, and no checkpoint was due yet"
        )
        done = dbt("validate", path, "-o", "lr_schedule.when=check", cwd=tmp_path)
        assert done.returncode == EXIT_PLUGIN
        assert "check() (test_plugin_faults.py:" in done.stderr
        assert "asked the program to end (exit code 0)" in done.stderr
