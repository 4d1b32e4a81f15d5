"""AdamW with 8-bit moments, against the paper's quantisation computed here, and against AdamW."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dreambooth.errors import RunError
from dreambooth.jobs.checks import preflight
from dreambooth.plugins import registry
from dreambooth_plugins.optimizer.adamw import AdamW
from dreambooth_plugins.optimizer.adamw8bit import AdamW8bit

LR, BETAS, EPS, DECAY = 0.01, (0.8, 0.95), 1e-3, 0.1
OPTIONS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}


def parameter(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape, generator=generator))


def gradient(p, step):
    """Return a gradient whose rows differ a thousandfold in size, as layers' rows do."""
    generator = torch.Generator().manual_seed(100 + step)
    rows = torch.logspace(-3, 0, p.shape[0]).view(-1, *[1] * (p.dim() - 1))
    return torch.randn(p.shape, generator=generator) * rows


def walk(optimizer, params, steps):
    for step in steps:
        for p in params:
            p.grad = gradient(p, step)
        optimizer.step()


def table(signed):
    """Return the 256 values of the paper's dynamic tree, ascending: seven decades, each halved in
    its number of values going down, at the middles of equal parts of 0.1..1."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)
        values += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(values))


def decoded(codes, absmax, values):
    flat = values[codes.numpy().ravel()]
    return (flat * absmax.double().numpy().repeat(256)[: flat.size]).reshape(tuple(codes.shape))


def assert_nearest(x, codes, absmax, values):
    """Every block's scale is its largest magnitude, and every code a nearest one.

    Up to 2^-15: the CPU kernel looks codes up for 2^16 equal parts of -1..1.
    """
    flat = x.ravel()
    blocks = [flat[i : i + 256] for i in range(0, flat.size, 256)]
    scale = np.array([np.abs(block).max() for block in blocks])
    np.testing.assert_allclose(absmax.numpy(), scale, rtol=1e-5)
    scaled = flat / scale.repeat(256)[: flat.size]
    off = np.abs(scaled - values[codes.numpy().ravel()])
    least = np.abs(scaled[:, None] - values[None]).min(axis=1)
    assert (off - least).max() < 2**-15


def test_every_step_is_adamw_between_moments_quantised_as_in_the_paper():
    p = parameter(70, 67)  # 4690 numbers: the last block is short
    optimizer = AdamW8bit(**OPTIONS).build([{"params": [p]}])
    m, v = np.zeros(p.shape), np.zeros(p.shape)
    for t in range(1, 7):
        before, g = p.detach().double().numpy(), gradient(p, t).double().numpy()
        walk(optimizer, [p], [t])
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        wanted = before - LR * DECAY * before - LR * m_hat / (np.sqrt(v_hat) + EPS)
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=0, atol=2e-6)
        state = optimizer.state[p]
        assert state["step"] == t
        assert state["state1"].dtype == state["state2"].dtype == torch.uint8
        assert_nearest(m, state["state1"], state["absmax1"], table(signed=True))
        assert_nearest(v, state["state2"], state["absmax2"], table(signed=False))
        m = decoded(state["state1"], state["absmax1"], table(signed=True))
        v = decoded(state["state2"], state["absmax2"], table(signed=False))


def test_it_stays_near_adamw_and_is_not_adamw(emit):
    narrow, wide = parameter(64, 128), parameter(64, 128)
    start = wide.detach().clone()
    walk(AdamW8bit(**OPTIONS).build([{"params": [narrow]}]), [narrow], range(30))
    walk(AdamW(**OPTIONS).build([{"params": [wide]}]), [wide], range(30))
    apart = (narrow - wide).detach().norm() / (wide.detach() - start).norm()
    emit("8-bit AdamW from AdamW, of the way of 30 steps", f"{apart:.4f}")
    assert 1e-4 < apart < 0.03


def test_small_tensors_take_the_32_bit_path_to_the_bit():
    from bitsandbytes.optim import AdamW as Library

    ours, theirs = ([parameter(63, 65), parameter(5)] for _ in range(2))  # 4095 numbers, and 5
    optimizer = AdamW8bit(**OPTIONS).build([{"params": ours}])
    walk(optimizer, ours, range(5))
    walk(Library(theirs, **OPTIONS, optim_bits=32), theirs, range(5))
    exact = [parameter(63, 65), parameter(5)]
    walk(AdamW(**OPTIONS).build([{"params": exact}]), exact, range(5))
    for p, q, r in zip(ours, theirs, exact, strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(p, r, rtol=0, atol=2e-6)
        assert set(optimizer.state[p]) == {"step", "state1", "state2"}
        assert optimizer.state[p]["state1"].dtype == torch.float32


def test_where_the_quantisation_begins_is_an_option():
    p = parameter(16, 16)
    optimizer = AdamW8bit(min_8bit_size=256).build([{"params": [p]}])
    walk(optimizer, [p], [0])
    assert optimizer.state[p]["state1"].dtype == torch.uint8


def test_a_group_keeps_its_own_rate_and_decay():
    a, b = parameter(70, 70), parameter(70, 70, seed=1)
    groups = [{"params": [a], "lr": 0.03, "weight_decay": 0.0}, {"params": [b]}]
    optimizer = AdamW8bit(lr=0.01, weight_decay=0.5).build(groups)
    rates = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert rates == [(0.03, 0.0), (0.01, 0.5)]


@pytest.mark.parametrize("shape", [(100, 100), (64, 64), (63, 65), (7,)])
def test_state_bytes_are_what_the_state_holds(shape):
    config, p = AdamW8bit(), parameter(*shape)
    optimizer = config.build([{"params": [p]}])
    walk(optimizer, [p], [0])
    held = {k: v for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
    real = sum(v.nbytes for k, v in held.items() if not k.startswith("qmap"))
    assert config.state_bytes(p.numel()) * p.numel() == pytest.approx(real, abs=8)  # half a block
    assert config.state_bytes() == 2.03125


def damaged(change):
    """Return a parameter's optimizer and its own state with one thing changed."""
    p = parameter(70, 70)
    optimizer = AdamW8bit(**OPTIONS).build([{"params": [p]}])
    walk(optimizer, [p], range(2))
    entry = dict(optimizer.state[p])
    change(entry)
    return optimizer, {"state": {0: entry}, "param_groups": optimizer.state_dict()["param_groups"]}


FOREIGN = {
    "codes widened": lambda e: e.update(state1=e["state1"].int()),
    "codes of another shape": lambda e: e.update(state2=e["state2"][:-1]),
    "a scale short": lambda e: e.update(absmax1=e["absmax1"][:-1]),
    "a table short": lambda e: e.update(qmap2=e["qmap2"][:10]),
    "scales missing": lambda e: e.pop("absmax2"),
    "codes missing": lambda e: e.pop("state1"),
    "steps as text": lambda e: e.update(step="3"),
    "no step taken": lambda e: e.update(step=0),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_state_a_kernel_would_stumble_over_is_refused(change):
    optimizer, state = damaged(lambda entry: None)
    optimizer.load_state_dict(state)  # as it is, it is taken
    optimizer, state = damaged(change)
    with pytest.raises((ValueError, LookupError)):
        optimizer.load_state_dict(state)


def test_a_device_without_kernels_is_refused_with_the_way_out():
    p = torch.nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(RunError, match="bitsandbytes cannot work on meta") as caught:
        AdamW8bit().build([{"params": [p]}])
    assert "optimizer: adamw" in caught.value.hint


def test_a_library_that_takes_no_step_is_named(monkeypatch):
    from dreambooth_plugins.optimizer import adamw8bit_states

    monkeypatch.setattr(adamw8bit_states.Library, "step", lambda self: None)
    with pytest.raises(RunError, match="takes no step on cpu"):
        AdamW8bit().build([{"params": [parameter(2)]}])


def test_without_the_library_the_job_is_told_the_command(small_job, monkeypatch):
    job = small_job(optimizer={"kind": "adamw8bit", "lr": 1e-4})
    assert preflight(job) == []
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "dreambooth_plugins.common.extras.find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )
    [problem] = preflight(job)
    assert problem.at == ("optimizer", "kind")
    assert problem.message == "bitsandbytes is not installed"
    assert problem.hint == "pip install 'dreambooth-trainer[8bit]'"


def test_a_folder_of_that_name_is_no_library(small_job, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "dreambooth_plugins.common.extras.find_spec",
        lambda name: importlib.machinery.ModuleSpec(name, None, is_package=True),
    )
    [problem] = preflight(small_job(optimizer={"kind": "adamw8bit"}))
    assert "not installed" in problem.message


def test_building_without_the_library_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.delitem(sys.modules, "dreambooth_plugins.optimizer.adamw8bit_states", raising=False)
    with pytest.raises(RunError, match=r"bitsandbytes.* is not installed") as caught:
        AdamW8bit().build([{"params": [parameter(2)]}])
    assert "dreambooth-trainer[8bit]" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"lr": 0.0},
        {"min_8bit_size": 0}, {"implementation": "fused"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        AdamW8bit(**options)


def test_adamw_names_it_as_the_lighter_one_with_its_own_options():
    lighter = AdamW(**OPTIONS).lighter()
    assert lighter == AdamW8bit(**OPTIONS)
    assert lighter.lighter() is None
    assert registry().kinds("optimizer")["adamw8bit"] is AdamW8bit
