"""Prodigy, against the paper's formula and against the library called by itself."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from copy import deepcopy

import pytest
import torch
from prodigyopt import Prodigy as Library
from pydantic import ValidationError

from dreambooth.engine.loop import run
from dreambooth.engine.state import TrainState
from dreambooth.errors import RunError
from dreambooth.jobs.checks import preflight
from dreambooth.plugins import registry
from dreambooth_plugins.optimizer.prodigy import Prodigy


def by_formula(x0, gradient, steps, lr, betas, d0, d_coef):
    """Return every x and d of Algorithm 4 of arXiv:2306.06101 for one number (eps 0)."""
    x, d, m, v, r, s = x0, d0, 0.0, 0.0, 0.0, 0.0
    root = math.sqrt(betas[1])
    trail = []
    for _ in range(steps):
        g = gradient(x)
        m = betas[0] * m + (1 - betas[0]) * d * g
        v = betas[1] * v + (1 - betas[1]) * d * d * g * g
        r = root * r + (1 - root) * lr * d * d * g * (x0 - x)
        s = root * s + (1 - root) * lr * d * d * g
        x, d = x - lr * d * m / math.sqrt(v), max(d, d_coef * r / abs(s))
        trail.append((x, d))
    return trail


@pytest.mark.parametrize("d_coef", [1.0, 0.5])
@pytest.mark.parametrize("safe", [True, False])
def test_one_number_follows_the_formula_of_the_paper(d_coef, safe):
    options = {"lr": 1.0, "betas": (0.8, 0.98), "d0": 1e-3, "d_coef": d_coef}
    trail = by_formula(2.0, lambda x: x - 5.0, 60, **options)
    x = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    config = Prodigy(
        **options, eps=1e-30, weight_decay=0.0, use_bias_correction=False, safeguard_warmup=safe
    )
    optimizer = config.build([{"params": [x]}])
    for wanted, d in trail:
        x.grad = x.detach() - 5.0
        optimizer.step()
        assert float(x.detach()) == pytest.approx(wanted, rel=1e-9)
        assert config.scalars(optimizer)["train/lr_effective"] == pytest.approx(d, rel=1e-9)
    assert trail[-1][1] > 100 * options["d0"]  # the estimate has left the ground


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = {"unet.a": (4, 3), "unet.b": (5,), "text_encoder.c": (2, 3, 2), "unet.zero": (3, 3)}
    made = {n: torch.nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    made["unet.zero"].data.zero_()
    return made


def give_gradients(params, step):
    """Point every parameter, noisily, to 1: the estimate grows."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = p.detach() - 1.0 + 0.1 * torch.randn(p.shape, generator=generator)


def open_state(config):
    params = parameters()
    groups = [
        {"params": [p for n, p in params.items() if n.startswith("unet.")]},
        {"params": [params["text_encoder.c"]], "weight_decay": 0.0},
    ]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = config.build(groups)
    return TrainState(params, optimizer, scaler, [g["lr"] for g in optimizer.param_groups])


def advance(state, steps, total=40):
    """Take steps as the engine does: the rate is set before each, here along half a cosine."""
    for _ in range(steps):
        factor = 0.5 * (1 + math.cos(math.pi * state.step / total))
        for group, base in zip(state.optimizer.param_groups, state.base_lrs, strict=True):
            group["lr"] = base * factor
        give_gradients(state.parameters.values(), state.step)
        state.optimizer.step()
        state.step += 1


CONFIGS = {
    "defaults, from higher up": Prodigy(d0=1e-3),
    "grown slowly, in slices": Prodigy(growth_rate=1.1, slice_p=3, d_coef=2.0, d0=1e-4),
    "library's defaults": Prodigy(
        use_bias_correction=False, safeguard_warmup=False, weight_decay=0.0, d0=1e-3
    ),
    "without momentum": Prodigy(betas=(0.0, 0.99), lr=0.5, d0=1e-2, d_coef=8.0),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_is_the_library_to_the_bit(config, capsys):
    state = open_state(config)
    advance(state, 30)
    params = parameters()
    rest = {k: v for k, v in config.model_dump().items() if k not in {"kind", "lr"}}
    rest["growth_rate"] = rest["growth_rate"] or math.inf
    assert capsys.readouterr() == ("", "")
    library = Library([params["unet.a"], params["unet.b"], params["unet.zero"]], config.lr, **rest)
    library.add_param_group({"params": [params["text_encoder.c"]], "weight_decay": 0.0})
    for step in range(30):
        for group in library.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / 40))
        give_gradients(params.values(), step)
        library.step()
    for name, p in params.items():
        assert torch.equal(p, state.parameters[name]), name
    group = library.param_groups[0]
    scalars = config.scalars(state.optimizer)
    assert scalars == {"train/lr_effective": group["lr"] * group["d"]}
    assert group["d"] > 1.05 * group["d0"]  # it was estimated, not left where it began


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cut", [1, 7])
def test_state_taken_back_goes_on_to_the_bit(config, cut):
    straight, first, second = (open_state(config) for _ in range(3))
    advance(straight, 20)
    advance(first, cut)
    saved = deepcopy((first.tensors(), first.numbers()))
    advance(second, 3)  # whatever it holds gives way
    second.load(*saved)
    assert second.numbers() == saved[1]
    advance(second, 20 - cut)
    assert straight.numbers() == second.numbers()
    for stem, tensors in straight.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors()[stem][name]), (stem, name)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_state_bytes_are_what_the_state_holds(config):
    state = open_state(config)
    advance(state, 1)
    for name, p in state.parameters.items():
        real = sum(v.nbytes for v in state.optimizer.state[p].values() if torch.is_tensor(v))
        if name == "unet.zero":  # whose start is one zero
            real += 4 * (-(-p.numel() // config.slice_p) - 1)
        counted = config.state_bytes(p.numel()) * p.numel()
        assert counted == pytest.approx(real, abs=8), name  # slices are rounded up


def groups(numbers, **values):
    return [{**group, **values} for group in numbers["groups"]]


FOREIGN = {
    "no estimate": lambda t, n: n.pop("groups"),
    "a group short": lambda t, n: n["groups"].pop(),
    "an estimate below its start": lambda t, n: n.update(groups=groups(n, d=1e-9)),
    "an endless estimate": lambda t, n: n.update(groups=groups(n, d=math.inf, d_max=math.inf)),
    "an estimate that is none": lambda t, n: n.update(groups=groups(n, d=math.nan)),
    "steps not counted": lambda t, n: n.update(groups=groups(n, k=1)),
    "steps in halves": lambda t, n: n.update(groups=groups(n, k=5.5)),
    "another start": lambda t, n: n.update(groups=groups(n, d0=0)),
    "options": lambda t, n: n.update(groups=groups(n, eps=1.0)),
    "flags": lambda t, n: n.update(groups=groups(n, decouple=False)),
    "a rate": lambda t, n: n.update(groups=groups(n, lr=1.0)),
    "words": lambda t, n: n.update(groups=groups(n, d_max="high")),
    "a number for a list": lambda t, n: n.update(groups=groups(n, betas=3)),
    "a number no float holds": lambda t, n: n.update(groups=groups(n, d_hat=10**400)),
    "s of another length": lambda t, n: t["optimizer"].update(
        {"unet.a::s": t["optimizer"]["unet.a::s"][:-1]}
    ),
    "no start": lambda t, n: t["optimizer"].pop("unet.a::p0"),
    "a start of another length": lambda t, n: t["optimizer"].update({"unet.b::p0": torch.zeros(2)}),
    "steps as text": lambda t, n: n["optimizer"]["unet.a"].update(step="3"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_state_that_is_not_its_own_is_refused(change):
    state = open_state(Prodigy())
    advance(state, 3)
    tensors, numbers = deepcopy((state.tensors(), state.numbers()))
    open_state(Prodigy()).load(tensors, numbers)  # as it is, it is taken
    change(tensors, numbers)
    with pytest.raises((ValueError, LookupError, TypeError, OverflowError)):
        open_state(Prodigy()).load(tensors, numbers)


def test_more_than_one_learning_rate_is_refused():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(RunError, match=r"one learning rate .* \[0.5, 1.0\]") as caught:
        Prodigy().build([{"params": [a], "lr": 0.5}, {"params": [b]}])
    assert "freezing.lr" in caught.value.hint
    one = Prodigy().build([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.5}])
    assert [g["lr"] for g in one.param_groups] == [0.5, 0.5]


KEPT = {"kind": "components", "train": ["unet", "text_encoder"]}
PROBLEMS = {
    "a rate meant for AdamW": ({"optimizer": {"lr": 5e-6}}, ("optimizer", "lr")),
    "a rate far above": ({"optimizer": {"lr": 50.0}}, ("optimizer", "lr")),
    "a rate for each part": (
        {"freezing": {**KEPT, "lr": {"text_encoder": 0.5}}}, ("freezing", "lr"),
    ),
    "one rate for all parts, meant for AdamW": (
        {"freezing": {**KEPT, "train": ["unet"], "lr": {"unet": 1e-4}}}, ("freezing", "lr", "unet"),
    ),
    "a warm-up it would misread": (
        {"optimizer": {"safeguard_warmup": False}, "lr_schedule": {"kind": "constant",
                                                                   "warmup_steps": 2}},
        ("optimizer", "safeguard_warmup"),
    ),
    "a warm-up of a part's own": (
        {"freezing": {**KEPT, "start": {"unet": 2}}, "lr_schedule": {"kind": "constant",
                                                                     "warmup_steps": 2}},
        ("lr_schedule", "warmup_steps"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sections", "at"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_breaks_it_is_found_before_anything_is_loaded(small_job, sections, at):
    sections = {**sections, "optimizer": {"kind": "prodigy", **sections.get("optimizer", {})}}
    [problem] = preflight(small_job(**sections))
    assert problem.at == at
    assert problem.hint


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"lr_schedule": {"kind": "cosine", "warmup_steps": 2}},
        {"freezing": {**KEPT, "lr": {"unet": 0.5, "text_encoder": 0.5}}},
        {"checkpoints": {"keep_best": {"metric": "train/lr_effective"}}},
    ],
)
def test_what_it_can_do_is_not_refused(small_job, sections):
    assert preflight(small_job(optimizer={"kind": "prodigy"}, **sections)) == []


def test_a_run_logs_the_rate_in_effect(small_job):
    job = small_job(
        prior="none",
        optimizer={"kind": "prodigy", "lr": 0.5, "d0": 1e-3, "d_coef": 50.0},
        freezing={"kind": "components", "train": ["text_encoder"]},
        lr_schedule={"kind": "linear", "end_factor": 0.5},
    )
    folder = run(job).folder
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    state = json.loads((folder / "checkpoints/step-000004/state.json").read_text())
    [group] = state["train"]["groups"]
    assert last["train/lr"] == 0.5 * (1 - 0.5 * 3 / 4)
    assert last["train/lr_effective"] == last["train/lr"] * group["d"]
    assert (group["k"], group["d"] > 1e-3) == (4, True)


def test_without_the_library_the_job_is_told_the_command(small_job, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "dreambooth_plugins.common.extras.find_spec",
        lambda name: None if name == "prodigyopt" else find(name),
    )
    [problem] = preflight(small_job(optimizer={"kind": "prodigy"}))
    assert problem.message == "prodigyopt is not installed"
    assert problem.hint == "pip install 'dreambooth-trainer[prodigy]'"


def test_building_without_the_library_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.delitem(sys.modules, "dreambooth_plugins.optimizer.prodigy_state", raising=False)
    with pytest.raises(RunError, match="prodigyopt is not installed") as caught:
        Prodigy().build([])
    assert "dreambooth-trainer[prodigy]" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"lr": 0.0}, {"d0": 0.0},
        {"d_coef": 0.0}, {"growth_rate": 1.0}, {"slice_p": 0}, {"beta3": 0.9},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        Prodigy(**options)


def test_prodigy_is_registered_and_begins_at_a_rate_of_one():
    assert registry().kinds("optimizer")["prodigy"] is Prodigy
    assert (Prodigy().lr, Prodigy().lighter()) == (1.0, None)
