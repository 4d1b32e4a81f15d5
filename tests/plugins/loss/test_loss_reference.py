"""Losses that compare with the base, row by row against their formulas in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from test_loss_prior_preservation import by_hand, step

from dreambooth.interfaces import Subject
from dreambooth_plugins.loss.dco import DCO
from dreambooth_plugins.loss.prior_preservation import PriorPreservation
from dreambooth_plugins.loss.self_distilled_prior import SelfDistilledPrior


def with_reference(s, apart=0.02, seed=5):
    g = torch.Generator().manual_seed(seed)
    reference = s.pred + apart * torch.randn(s.pred.shape, generator=g)
    return replace(s, reference=reference)


def dco_by_hand(s, beta):
    rows = []
    for i in range(len(s.t)):
        model = ((s.pred[i] - s.target[i]).double() ** 2).mean().item()
        base = ((s.reference[i] - s.target[i]).double() ** 2).mean().item()
        x = -beta * (model - base)
        log_sigmoid = -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))
        rows.append(-log_sigmoid * float(s.weight[i]))
    return torch.tensor(rows)


@pytest.mark.parametrize("beta", [1000.0, 3.0])
@pytest.mark.parametrize("count", [1, 3])
def test_dco_equals_its_formula(count, beta):
    s = with_reference(step(count, 0, weight=[0.5, 2.0, 1.0][:count]))
    rows = DCO(beta=beta).rows(s)
    assert rows.shape == (count,)
    assert rows.dtype == torch.float32
    # Errors of about 1 are rounded to 1e-7 in float32, and beta magnifies that.
    torch.testing.assert_close(rows, dco_by_hand(s, beta), rtol=1e-4, atol=1e-3)


def test_dco_of_a_model_that_is_the_base_is_log_two():
    s = step(2, 0)
    rows = DCO().rows(replace(s, reference=s.pred.clone()))
    torch.testing.assert_close(rows, torch.full((2,), math.log(2)))


def test_the_gradient_of_dco_fades_as_the_model_leaves_the_base_behind():
    norms = []
    for better in (0.0, 0.01, 0.1):
        s = step(1, 0)
        pred = (s.target + (1 - better) * (s.pred - s.target)).requires_grad_()
        DCO().rows(replace(s, pred=pred, reference=s.pred)).sum().backward()
        norms.append(float(pred.grad.norm()))
    assert norms[0] > norms[1] > 1e3 * norms[2]


def test_dco_is_finite_far_from_the_base():
    for target in (0.0, 1.0):
        s = step(1, 0)
        pred = (s.pred * (1 - target) + s.target * target).requires_grad_()
        far = replace(s, pred=pred, reference=s.target * target + s.pred * 50 * (1 - target))
        rows = DCO(beta=1e4).rows(far)
        rows.sum().backward()
        assert torch.isfinite(rows).all()
        assert torch.isfinite(pred.grad).all()


def test_the_base_sees_the_prompt_without_the_identifier():
    subject = Subject(identifier="sks", class_noun="dog")
    loss = DCO()
    assert loss.reference_prompt("a photo of sks dog", subject) == "a photo of dog"
    assert loss.reference_prompt("SKS dog, masks", subject) == "dog, masks"
    assert loss.reference_prompt("", subject) == ""
    odd = Subject(identifier="<my.dog>", class_noun="dog")
    assert loss.reference_prompt("a <my.dog>, wet", odd) == "a , wet"
    assert loss.reference_prompt("a <myxdog>", odd) == "a <myxdog>"


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("distance", ["mse", "huber", "l1"])
@pytest.mark.parametrize("count", [1, 3])
def test_class_rows_are_held_to_the_base_and_instance_rows_to_the_noise(count, distance, gamma):
    s = with_reference(step(count, count), apart=0.3)
    options = {"distance": distance, "min_snr_gamma": gamma, "prior_weight": 0.3}
    rows = SelfDistilledPrior(**options).rows(s)
    held = torch.where(s.is_prior.view(-1, 1, 1, 1), s.reference, s.target)
    hand = {"distance": distance, "gamma": gamma, "prior_weight": 0.3}
    torch.testing.assert_close(rows, by_hand(replace(s, target=held), **hand))
    noise = by_hand(s, **hand)
    torch.testing.assert_close(rows[:count], noise[:count])
    assert not torch.isclose(rows[count:], noise[count:], rtol=0.1).any()


def test_what_they_need():
    assert DCO().required() == {"reference"}
    assert SelfDistilledPrior().required() == {"class_rows", "class_reference"}
    assert SelfDistilledPrior(min_snr_gamma=5.0).required() > {"snr"}
    assert PriorPreservation().required() == frozenset()
    with pytest.raises(ValidationError):
        DCO(beta=0.0)
