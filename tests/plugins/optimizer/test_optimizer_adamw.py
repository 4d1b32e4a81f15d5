from __future__ import annotations

import json
import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from dreambooth.errors import RunError
from dreambooth.plugins import registry
from dreambooth_plugins.optimizer.adamw import AdamW
from dreambooth_plugins.optimizer.implementations import choose

SHAPES = [(3, 4), (5,), (2, 3, 2)]
IMPLEMENTATIONS = ["auto", "fused", "foreach", "loop"]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def by_formula(params, steps, lr, betas, eps, decay):
    """Return the parameters after `steps` of the formula, computed in float64."""
    done = [p.detach().double().clone() for p in params]
    m = [torch.zeros_like(p) for p in done]
    v = [torch.zeros_like(p) for p in done]
    shadow = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for t in range(1, steps + 1):
        give_gradients(shadow, t)
        for i, s in enumerate(shadow):
            g = s.grad.double()
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            m_hat, v_hat = m[i] / (1 - betas[0] ** t), v[i] / (1 - betas[1] ** t)
            done[i] = done[i] - lr * decay * done[i] - lr * m_hat / (v_hat.sqrt() + eps)
    return done


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_implementation_follows_the_formula(implementation):
    params = parameters()
    wanted = by_formula(params, 5, 0.01, (0.8, 0.95), 1e-3, 0.1)
    component = AdamW(
        lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, implementation=implementation
    )
    optimizer = component.build([{"params": params}])
    for step in range(1, 6):
        give_gradients(params, step)
        optimizer.step()
    for p, w in zip(params, wanted, strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=0, atol=2e-6)


def test_a_group_keeps_its_own_rate_and_decay():
    a, b = parameters()[:2]
    optimizer = AdamW(lr=0.01, weight_decay=0.5).build(
        [{"params": [a], "lr": 0.03, "weight_decay": 0.0}, {"params": [b]}]
    )
    rates = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert rates == [(0.03, 0.0), (0.01, 0.5)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_state_through_safetensors_and_json_goes_on_to_the_bit(implementation):
    component = AdamW(lr=0.01, implementation=implementation)
    straight, resumed = parameters(), parameters()
    one, two = component.build([{"params": straight}]), component.build([{"params": resumed}])
    for params, optimizer in ((straight, one), (resumed, two)):
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
    state = two.state_dict()
    flat = {f"{i}.{k}": v for i, s in state["state"].items() for k, v in s.items()}
    assert {k.split(".")[1] for k in flat} == {"step", "exp_avg", "exp_avg_sq"}
    read = load(save(flat))
    back = {i: {k: read[f"{i}.{k}"] for k in s} for i, s in state["state"].items()}
    groups = json.loads(json.dumps(state["param_groups"]))
    fresh = component.build([{"params": resumed}])
    fresh.load_state_dict({"state": back, "param_groups": groups})
    for params, optimizer in ((straight, one), (resumed, fresh)):
        for step in range(3, 6):
            give_gradients(params, step)
            optimizer.step()
    for p, q in zip(straight, resumed, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("wanted", "devices", "chosen"),
    [
        ("auto", {"cpu"}, "fused"),
        ("auto", {"cuda"}, "fused"),
        ("auto", {"meta"}, "loop"),
        ("foreach", {"cpu"}, "foreach"),
        ("loop", {"cuda"}, "loop"),
    ],
)
def test_choice_of_implementation(wanted, devices, chosen):
    assert choose(wanted, devices) == chosen


def test_foreach_is_second_choice_on_a_gpu(monkeypatch):
    from dreambooth_plugins.optimizer import implementations

    monkeypatch.setattr(implementations, "_get_fused_kernels_supported_devices", lambda: ["cpu"])
    assert choose("auto", {"cuda"}) == "foreach"


def test_fused_on_a_device_without_it_is_refused_with_the_way_out():
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    with pytest.raises(RunError, match="no fused AdamW for meta") as caught:
        AdamW(implementation="fused").build([{"params": [parameter]}])
    assert "implementation: auto" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [{"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"lr": 0.0}, {"beta1": 0.9}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        AdamW(**options)


def test_options_read_from_json():
    read = AdamW.model_validate_json('{"kind": "adamw", "betas": [0.8, 0.99]}', strict=True)
    assert read.betas == (0.8, 0.99)
    assert math.isclose(read.weight_decay, 0.01)


def test_adamw_is_registered():
    assert registry().kinds("optimizer")["adamw"] is AdamW
