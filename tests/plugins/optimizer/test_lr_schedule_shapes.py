from __future__ import annotations

import math

import pytest
import torch
from diffusers.optimization import get_scheduler as diffusers_scheduler
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler as transformers_scheduler

from dreambooth.plugins import registry
from dreambooth_plugins.optimizer.schedules import Constant, Cosine, Linear

STEPS = 37
KINDS = {"constant": Constant, "linear": Linear, "cosine": Cosine}


def rates_of(get_scheduler, name):
    """Return the rate each optimizer step of a library's schedule runs at, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("library", [diffusers_scheduler, transformers_scheduler])
@pytest.mark.parametrize("name", list(KINDS))
def test_without_warmup_it_is_the_libraries_schedule(name, library):
    ours = [KINDS[name]().at(k, STEPS) for k in range(STEPS)]
    assert ours == pytest.approx(rates_of(library, name), abs=1e-12)


def test_linear_formula():
    schedule = Linear(end_factor=0.2)
    assert [schedule.factor(k, 4) for k in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_formula():
    schedule = Cosine(end_factor=0.1)
    for k in range(11):
        wanted = 0.1 + 0.9 * math.cos(math.pi * k / 20) ** 2  # half-angle form
        assert schedule.factor(k, 10) == pytest.approx(wanted)


def test_warmup_climbs_to_the_full_rate():
    schedule = Constant(warmup_steps=4)
    assert [schedule.at(k, 10) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_decay_begins_when_the_warmup_has_reached_the_full_rate(name):
    schedule = KINDS[name](warmup_steps=12)
    climb = [schedule.at(k, STEPS) for k in range(12)]
    assert climb == pytest.approx([(k + 1) / 12 for k in range(12)])
    after = [schedule.at(k, STEPS) for k in range(12, STEPS)]
    assert after == pytest.approx([schedule.factor(k, STEPS - 12) for k in range(STEPS - 12)])


def test_what_starts_later_has_a_warmup_of_its_own_under_the_same_decay():
    schedule = Linear(warmup_steps=4)
    whole = [schedule.at(k, 24) for k in range(24)]
    late = [schedule.at(k, 24, start=10) for k in range(24)]
    assert late[:10] == [0.0] * 10
    assert late[10:13] == pytest.approx([whole[10 + k] * (k + 1) / 4 for k in range(3)])
    assert late[13:] == whole[13:]


def test_a_warmup_as_long_as_the_run_divides_by_nothing():
    assert Cosine(warmup_steps=9).at(8, 9) == 1.0


@given(
    kind=st.sampled_from(list(KINDS.values())),
    steps=st.integers(1, 5000),
    end=st.floats(0, 1),
    step=st.integers(0, 10000),
)
def test_factors_fall_within_their_bounds(kind, steps, end, step):
    schedule = kind() if kind is Constant else kind(end_factor=end)
    now, later = schedule.factor(step, steps), schedule.factor(step + 1, steps)
    low = 1.0 if kind is Constant else end
    assert low - 1e-12 <= later <= now + 1e-12 <= 1.0 + 2e-12


def test_no_step_runs_at_a_rate_of_zero():
    for schedule in (Linear(), Cosine()):
        assert schedule.at(STEPS - 1, STEPS) > 0.0
        assert schedule.factor(STEPS, STEPS) == pytest.approx(0.0)
        assert schedule.factor(2 * STEPS, STEPS) == pytest.approx(0.0)


def test_only_decaying_schedules_depend_on_the_end():
    assert not Constant(warmup_steps=5).depends_on_end()
    assert Linear().depends_on_end()
    assert Cosine().depends_on_end()


def test_schedules_are_registered():
    kinds = registry().kinds("lr_schedule")
    assert {name: kinds[name] for name in KINDS} == KINDS
