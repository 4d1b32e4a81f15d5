"""Training state: names are the keys, bits come back."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.state import TrainState
from dreambooth.errors import RunError


def make(seed=0, ema=None, names=("unet.a", "unet.b")):
    torch.manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(4, 3)) for name in names}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(parameters, optimizer, scaler, [0.1], ema)


def train(state, steps):
    for _ in range(steps):
        loss = sum((p**2).sum() * (state.step + 1) for p in state.parameters.values())
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.update_ema()


@pytest.mark.parametrize("ema", [None, 0.9])
def test_going_on_from_saved_state_equals_going_straight_on(ema):
    straight, first, second = make(ema=ema), make(ema=ema), make(seed=5, ema=ema)
    train(straight, 7)
    train(first, 3)
    second.load(first.tensors(), first.numbers())
    train(second, 4)
    for stem, tensors in straight.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors()[stem][name]), (stem, name)
    assert straight.numbers() == second.numbers()


def test_the_average_follows_the_formula():
    state = make(ema=0.5)
    expected = {n: p.detach().clone() for n, p in state.parameters.items()}
    for k in range(1, 4):
        train(state, 1)
        decay = min(0.5, (1 + k) / (10 + k))
        for n, p in state.parameters.items():
            expected[n] = decay * expected[n] + (1 - decay) * p.detach()
            torch.testing.assert_close(state.ema[n], expected[n])


def test_showing_the_result_puts_the_weights_back_to_the_bit():
    state = make(ema=0.5)
    train(state, 2)
    before = {n: p.detach().clone() for n, p in state.parameters.items()}
    with state.showing_result():
        assert all(torch.equal(p, state.ema[n]) for n, p in state.parameters.items())
    assert all(torch.equal(p, before[n]) for n, p in state.parameters.items())


def test_other_names_are_refused():
    with pytest.raises(RunError, match="other parameters"):
        make().load(make(names=("unet.a", "unet.c")).tensors(), make().numbers())


def test_a_missing_average_is_refused():
    saved = make()
    with pytest.raises(RunError, match="other parameters"):
        make(ema=0.5).load(saved.tensors(), saved.numbers())
