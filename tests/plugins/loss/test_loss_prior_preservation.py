from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from pydantic import ValidationError

from dreambooth.errors import JobError
from dreambooth.interfaces import LatentSpec, ModelInfo, StepTensors
from dreambooth_plugins.loss.distances import debiased_weight
from dreambooth_plugins.loss.prior_preservation import PriorPreservation
from dreambooth_plugins.scheduler.ddpm import DDPM

THEIRS = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
DISTANCES = {
    "mse": lambda d, delta: d**2,
    "l1": lambda d, delta: d.abs(),
    "huber": lambda d, delta: torch.where(
        d.abs() <= delta, d**2 / 2, delta * (d.abs() - delta / 2)
    ),
}


def step(instances, classes, prediction="epsilon", weight=None):
    """A step's tensors as diffusers computes them, instance rows first."""
    g = torch.Generator().manual_seed(instances)
    count = instances + classes
    z, noise, pred = (torch.randn((count, 4, 6, 5), generator=g) for _ in range(3))
    t = torch.randint(0, 1000, (count,), generator=g)
    target = noise if prediction == "epsilon" else THEIRS.get_velocity(z, noise, t)
    return StepTensors(
        pred=pred,
        target=target,
        reference=None,
        t=t,
        snr=compute_snr(THEIRS, t),
        is_prior=torch.arange(count) >= instances,
        weight=torch.ones(count) if weight is None else torch.tensor(weight),
        mask=None,
        prediction=prediction,
        snr_table=all_snr().float(),
    )


def all_snr():
    abar = THEIRS.alphas_cumprod.double()
    return abar / (1 - abar)


def debiased_by_hand(snr, prediction):
    def raw(r):
        return 1 / (r + 1) if prediction == "v_prediction" else 1 / min(r, 1000.0) ** 0.5

    ratios = all_snr().tolist()
    return raw(float(snr)) / (sum(map(raw, ratios)) / len(ratios))


def by_hand(s, *, distance="mse", delta=0.1, gamma=None, debiased=False, prior_weight=1.0):
    """One row at a time, in float64, from the formulas."""
    rows = []
    for i in range(len(s.t)):
        each = DISTANCES[distance]((s.pred[i] - s.target[i]).double(), delta)
        loss = each.sum() / each.numel()
        if gamma is not None:
            snr = s.snr[i].double()
            loss *= min(snr, gamma) / (snr if s.prediction == "epsilon" else snr + 1)
        if debiased:
            loss *= debiased_by_hand(s.snr[i], s.prediction)
        rows.append(loss * s.weight[i] * (prior_weight if s.is_prior[i] else 1.0))
    return torch.stack(rows).float()


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("distance", ["mse", "huber", "l1"])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_equal_the_computation_by_hand(rows, distance, prediction, gamma):
    s = step(rows, rows, prediction)
    loss = PriorPreservation(distance=distance, min_snr_gamma=gamma, prior_weight=0.3).rows(s)
    expected = by_hand(s, distance=distance, gamma=gamma, prior_weight=0.3)
    assert loss.shape == (2 * rows,)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rows", [1, 3])
def test_debiased_rows_equal_the_computation_by_hand(rows, prediction):
    s = step(rows, rows, prediction)
    loss = PriorPreservation(debiased=True, prior_weight=0.3).rows(s)
    torch.testing.assert_close(loss, by_hand(s, debiased=True, prior_weight=0.3))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("span", [(0, 1000), (200, 700)])
def test_debiased_weights_average_to_one_over_the_timesteps_that_train(prediction, span):
    table = all_snr().float()[slice(*span)]
    assert debiased_weight(table, table, prediction).mean() == pytest.approx(1.0, abs=1e-5)
    info = SimpleNamespace(schedule=dict(THEIRS.config), prediction=prediction)
    schedule = DDPM(timestep_range=span).open(info)
    torch.testing.assert_close(schedule.snr_table(), table)


def test_debiased_weights_of_stable_diffusion():
    table = all_snr().float()
    raw = 1 / table.clamp(max=1000).sqrt()
    assert raw.mean() == pytest.approx(3.0, abs=0.05)  # why it is scaled at all
    weights = debiased_weight(table, table, "epsilon")
    assert weights[354] == pytest.approx(1 / 3, abs=0.01)  # SNR 1
    above = debiased_weight(torch.tensor([1e3, 1e5]), table, "epsilon")
    assert above[0] == above[1]  # capped: the clean end does not vanish
    assert torch.isfinite(debiased_weight(torch.zeros(1), table, "v_prediction")).all()


def test_sums_equal_the_usual_instance_mean_plus_weighted_prior_mean():
    s = step(3, 3)
    pred, pred_prior = s.pred.chunk(2)
    target, target_prior = s.target.chunk(2)
    usual = torch.nn.functional.mse_loss(pred, target)
    usual = usual + 0.5 * torch.nn.functional.mse_loss(pred_prior, target_prior)
    rows = PriorPreservation(prior_weight=0.5).rows(s)
    torch.testing.assert_close(rows[:3].sum() / 3 + rows[3:].sum() / 3, usual)


def test_min_snr_weighs_each_row_by_its_own_timestep():
    s = step(2, 2)
    snr = torch.tensor([10.0, 0.5, 50.0, 5.0])
    s = StepTensors(**{**s.__dict__, "snr": snr})
    ratio = PriorPreservation(min_snr_gamma=5.0).rows(s) / PriorPreservation().rows(s)
    torch.testing.assert_close(ratio, torch.tensor([0.5, 1.0, 0.1, 1.0]))


@pytest.mark.parametrize(("prediction", "weight"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_is_finite_at_pure_noise(prediction, weight):
    s = step(1, 1, prediction)
    s = StepTensors(**{**s.__dict__, "snr": torch.zeros(2)})
    pred = s.pred.requires_grad_()
    rows = PriorPreservation(min_snr_gamma=5.0).rows(s)
    rows.sum().backward()
    torch.testing.assert_close(rows, weight * PriorPreservation().rows(s))
    assert torch.isfinite(pred.grad).all()


def test_a_rows_own_weight_applies_to_both_halves():
    s = step(1, 1, weight=[0.25, 2.0])
    rows = PriorPreservation(prior_weight=3.0).rows(s)
    torch.testing.assert_close(rows, by_hand(s, prior_weight=3.0))


def test_huber_delta_is_the_bend():
    s = step(1, 1)
    wide = PriorPreservation(distance="huber", huber_delta=100.0).rows(s)
    torch.testing.assert_close(wide, PriorPreservation().rows(s) / 2)
    sharp = PriorPreservation(distance="huber", huber_delta=0.5).rows(s)
    torch.testing.assert_close(sharp, by_hand(s, distance="huber", delta=0.5))


def test_half_precision_predictions_are_compared_in_float32():
    s = step(1, 1)
    low = StepTensors(**{**s.__dict__, "pred": s.pred.bfloat16()})
    exact = StepTensors(**{**s.__dict__, "pred": s.pred.bfloat16().float()})
    assert torch.equal(PriorPreservation().rows(low), PriorPreservation().rows(exact))


def test_a_flow_model_has_no_snr_to_weigh_by():
    s = StepTensors(**{**step(1, 1).__dict__, "snr": None, "prediction": "flow"})
    with pytest.raises(JobError, match="min_snr_gamma"):
        PriorPreservation(min_snr_gamma=5.0).rows(s)
    with pytest.raises(JobError, match="debiased"):
        PriorPreservation(debiased=True).rows(s)
    torch.testing.assert_close(PriorPreservation().rows(s), by_hand(s))


def test_the_snr_is_needed_only_for_weighting():
    assert PriorPreservation().required() == frozenset()
    assert PriorPreservation(min_snr_gamma=5.0).required() == {"snr"}
    assert PriorPreservation(debiased=True).required() == {"snr"}


def found(loss, *, rows=True, prediction="epsilon"):
    job = SimpleNamespace(prior=SimpleNamespace(has_rows=lambda: rows))
    info = ModelInfo("x", prediction, {}, (), {}, LatentSpec(4, 8, 8), 512)
    return [p.at for p in loss.check(job, info)]


def test_check_finds_a_weight_without_class_images_and_the_reverse():
    at = ("loss", "prior_weight")
    assert found(PriorPreservation(prior_weight=0.5)) == []
    assert found(PriorPreservation(prior_weight=0.0)) == [at]
    assert found(PriorPreservation(prior_weight=0.5), rows=False) == [at]
    assert found(PriorPreservation(), rows=False) == []


def test_a_resolved_job_without_class_images_is_still_right():
    resolved = PriorPreservation.model_validate(PriorPreservation().model_dump())
    assert found(resolved, rows=False) == []


def test_check_finds_snr_weights_on_a_flow_model():
    loss = PriorPreservation(min_snr_gamma=5.0)
    assert found(loss, prediction="flow") == [("loss", "min_snr_gamma")]
    assert found(loss) == []
    debiased = PriorPreservation(debiased=True)
    assert found(debiased, prediction="flow") == [("loss", "debiased")]
    assert found(debiased) == []


def test_check_finds_two_weights_for_the_same_timesteps():
    loss = PriorPreservation(debiased=True, min_snr_gamma=5.0)
    assert found(loss) == [("loss", "debiased")]


@pytest.mark.parametrize("bad", [{"prior_weight": -1}, {"min_snr_gamma": 0}, {"huber_delta": 0}])
def test_options_are_bounded(bad):
    with pytest.raises(ValidationError):
        PriorPreservation(**bad)
