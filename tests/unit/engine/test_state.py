"""Training state: names are the keys, bits come back."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.state import TrainState
from dreambooth.errors import PluginError, RunError


class Counting(torch.optim.SGD):
    """Slows down by what it counts in its groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
            group["weight_decay"] += 0.1
            group["lr"] = 0.1 / group["taken"]
        super().step(closure)


def make(seed=0, ema=None, names=("unet.a", "unet.b"), kind=torch.optim.AdamW):
    torch.manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(4, 3)) for name in names}
    optimizer = kind([{"params": [p]} for p in parameters.values()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(parameters, optimizer, scaler, [0.1] * len(parameters), ema)


def train(state, steps):
    for _ in range(steps):
        loss = sum((p**2).sum() * (state.step + 1) for p in state.parameters.values())
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.update_ema()


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, Counting])
def test_going_on_from_saved_state_equals_going_straight_on(ema, kind):
    straight, first, second = (make(seed=s, ema=ema, kind=kind) for s in (0, 0, 5))
    train(straight, 7)
    train(first, 3)
    second.load(first.tensors(), first.numbers())
    train(second, 4)
    for stem, tensors in straight.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors()[stem][name]), (stem, name)
    assert straight.numbers() == second.numbers()


def test_what_an_optimizer_counts_in_its_groups_is_saved_and_nothing_else_of_them():
    state = make(kind=Counting)
    assert "groups" not in state.numbers()
    train(state, 2)
    assert state.numbers()["groups"] == [{"taken": 2, "weight_decay": 0.2}] * 2
    state.load(state.tensors(), {**state.numbers(), "groups": []})  # of a version without them
    assert [set(g) & {"taken"} for g in state.optimizer.param_groups] == [set()] * 2
    assert [g["weight_decay"] for g in state.optimizer.param_groups] == [0] * 2
    plain = make()
    train(plain, 2)
    assert "groups" not in plain.numbers()


@pytest.mark.parametrize("value", [torch.zeros(2), [1.0], "high", True])
def test_what_json_would_not_hold_in_a_group_is_refused_when_it_is_saved(value):
    state = make()
    state.optimizer.param_groups[1]["kept"] = value
    with pytest.raises(PluginError, match="'kept'"):
        state.numbers()


@pytest.mark.parametrize(
    "saved",
    [
        1, "ab", [{}], [{}, {}, {}], [{}, 1], [{"lr": 1.0}, {}], [{"params": 1}, {}],
        [{"nesterov": 1}, {}], [{"momentum": True}, {}], [{"momentum": "x"}, {}],
        [{"taken": None}, {}], [{"taken": 10**400}, {}],
    ],
)  # fmt: skip
def test_numbers_of_groups_that_no_optimizer_wrote_are_refused(saved):
    state = make(kind=Counting)
    train(state, 1)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        state.load(state.tensors(), {**state.numbers(), "groups": saved})


def test_the_average_follows_the_formula():
    state = make(ema=0.5)
    expected = {n: p.detach().clone() for n, p in state.parameters.items()}
    for k in range(1, 4):
        train(state, 1)
        decay = min(0.5, (1 + k) / (10 + k))
        for n, p in state.parameters.items():
            expected[n] = decay * expected[n] + (1 - decay) * p.detach()
            torch.testing.assert_close(state.ema[n], expected[n])


def test_the_average_stays_where_the_scaler_left_the_update_out():
    masked, plain = make(ema=0.5), make(ema=0.5)
    for state in (masked, plain):
        train(state, 3)  # the average is behind the weights now
    kept = {n: average.clone() for n, average in masked.ema.items()}
    masked.update_ema(torch.tensor(True))
    assert all(torch.equal(average, kept[n]) for n, average in masked.ema.items())
    masked.update_ema(torch.tensor(False))
    plain.update_ema()
    for n, average in plain.ema.items():
        assert not torch.equal(average, kept[n])
        torch.testing.assert_close(masked.ema[n], average)


def test_showing_the_result_puts_the_weights_back_to_the_bit():
    state = make(ema=0.5)
    train(state, 2)
    before = {n: p.detach().clone() for n, p in state.parameters.items()}
    with state.showing_result():
        assert all(torch.equal(p, state.ema[n]) for n, p in state.parameters.items())
    assert all(torch.equal(p, before[n]) for n, p in state.parameters.items())


def test_showing_the_result_copies_nothing():
    state = make(ema=0.5)
    train(state, 2)
    own = {n: p.data_ptr() for n, p in state.parameters.items()}
    with state.showing_result():
        assert all(p.data_ptr() == state.ema[n].data_ptr() for n, p in state.parameters.items())
    assert {n: p.data_ptr() for n, p in state.parameters.items()} == own


def test_other_names_are_refused():
    with pytest.raises(RunError, match="other parameters"):
        make().load(make(names=("unet.a", "unet.c")).tensors(), make().numbers())


def test_a_missing_average_is_refused():
    saved = make()
    with pytest.raises(RunError, match="other parameters"):
        make(ema=0.5).load(saved.tensors(), saved.numbers())
