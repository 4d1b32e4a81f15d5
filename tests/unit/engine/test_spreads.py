"""Histograms of the weights that train, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreambooth.engine.watching.spreads import BUCKETS, spread_by_part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parts_histogram_is_that_of_all_its_numbers(dtype):
    torch.manual_seed(0)
    tensors = {
        "unet.a.weight": torch.randn(40, 7).to(dtype),
        "unet.b": 5 * torch.rand(13).to(dtype),
        "text_encoder.c": torch.full((4,), 2.0),
    }
    found = spread_by_part(tensors)
    assert found.keys() == {"weights/unet", "weights/text_encoder"}
    plain = np.concatenate(
        [tensors[n].float().numpy().ravel() for n in ("unet.a.weight", "unet.b")]
    )
    unet = found["weights/unet"]
    assert (len(unet.edges), len(unet.counts)) == (BUCKETS + 1, BUCKETS)
    assert (unet.edges[0], unet.edges[-1]) == pytest.approx((plain.min(), plain.max()))
    assert sum(unet.counts) == plain.size
    assert np.abs(np.array(unet.counts) - np.histogram(plain, unet.edges)[0]).sum() <= 2  # at edges
    assert unet.total == pytest.approx(plain.sum(dtype=np.float64), rel=1e-6)
    assert unet.squares == pytest.approx(np.square(plain, dtype=np.float64).sum(), rel=1e-6)
    flat = found["weights/text_encoder"]
    assert (sum(flat.counts), flat.total, flat.squares) == (4, 8, 16)
    assert flat.edges[0] < 2 < flat.edges[-1]
