"""`masked`: weighted by the subject's mask, normalised by its area, never below the floor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_loss_prior_preservation import DISTANCES, step

from dreambooth_plugins.loss.masked import Masked
from dreambooth_plugins.loss.prior_preservation import PriorPreservation


def masks(count, seed=2):
    g = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, 6, 5), generator=g)


def by_hand(s, floor, distance="mse", prior_weight=1.0, gamma=None):
    rows = []
    for i in range(len(s.t)):
        total = area = 0.0
        for y in range(6):
            for x in range(5):
                w = floor + (1 - floor) * float(s.mask[i, 0, y, x])
                d = DISTANCES[distance]((s.pred[i, :, y, x] - s.target[i, :, y, x]).double(), 0.1)
                total, area = total + w * float(d.mean()), area + w
        row = total / area * float(s.weight[i]) * (prior_weight if s.is_prior[i] else 1.0)
        snr = float(s.snr[i])
        rows.append(row * (min(snr, gamma) / snr if gamma else 1.0))
    return torch.tensor(rows)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("distance", ["mse", "huber", "l1"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_equal_the_computation_by_hand(count, distance, gamma):
    s = replace(step(count, count, weight=None), mask=masks(2 * count))
    loss = Masked(floor=0.2, distance=distance, prior_weight=0.3, min_snr_gamma=gamma)
    rows = loss.rows(s)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, by_hand(s, 0.2, distance, 0.3, gamma))


def test_the_size_of_the_subject_does_not_change_what_it_counts():
    s = step(2, 0)
    mask = torch.zeros(2, 1, 6, 5)
    mask[0, :, :1, :1], mask[1, :, :3, :4] = 1, 1
    flat = replace(s, pred=s.target + 0.5, mask=mask)
    torch.testing.assert_close(Masked(floor=0.0).rows(flat), torch.full((2,), 0.25))


def test_a_floor_of_one_and_a_whole_mask_are_the_plain_loss():
    s = replace(step(2, 2), mask=masks(4))
    plain = PriorPreservation().rows(s)
    torch.testing.assert_close(Masked(floor=1.0).rows(s), plain)
    torch.testing.assert_close(Masked().rows(replace(s, mask=torch.ones(4, 1, 6, 5))), plain)
    torch.testing.assert_close(Masked().rows(replace(s, mask=None)), plain)


def test_with_a_floor_of_zero_the_background_has_no_gradient():
    s = step(1, 0)
    mask = torch.zeros(1, 1, 6, 5)
    mask[..., 2:4, 1:3] = 1
    pred = s.pred.clone().requires_grad_()
    Masked(floor=0.0).rows(replace(s, pred=pred, mask=mask)).sum().backward()
    inside = mask.expand_as(pred) > 0
    assert (pred.grad[inside] != 0).all()
    assert (pred.grad[~inside] == 0).all()


def test_a_crop_without_the_subject_gives_nothing_and_no_nan():
    s = replace(step(1, 0), mask=torch.zeros(1, 1, 6, 5))
    assert Masked(floor=0.0).rows(s).tolist() == [0.0]


def test_it_needs_masks():
    assert Masked().required() == {"mask"}
    assert Masked(debiased=True).required() == {"mask", "snr"}
