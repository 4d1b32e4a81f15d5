"""Pictures on their way through the VAE: few enough at a time, and what comes out is one batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dreambooth.helpers.pictures import at_once, decode, encode
from dreambooth.interfaces import Latents


class Vae:
    """Doubles, and notes how many it was given."""

    info = SimpleNamespace(latent=SimpleNamespace(factor=8))

    def __init__(self, std=True):
        self.seen, self._std = [], std

    def decode(self, latents):
        self.seen.append(len(latents))
        return 2 * latents

    def encode_images(self, pixels):
        assert not torch.is_grad_enabled()
        self.seen.append(len(pixels))
        return Latents(2 * pixels, 3 * pixels if self._std else None)


@pytest.mark.parametrize(
    ("size", "count"), [((64, 64), 64), ((256, 256), 4), ((512, 512), 1), ((768, 512), 1)]
)
def test_pictures_at_once_by_their_size(size, count):
    assert at_once(size) == count


@pytest.mark.parametrize(("side", "seen"), [(64, [1, 1, 1]), (32, [2, 1]), (8, [2, 1])])
def test_pictures_are_decoded_one_or_two_at_a_time(side, seen):
    vae, latents = Vae(), torch.randn(3, 4, side, side)
    assert torch.equal(decode(vae, latents), 2 * latents)
    assert vae.seen == seen


@pytest.mark.parametrize("std", [True, False])
def test_images_are_encoded_some_at_a_time(std):
    vae, pixels = Vae(std), torch.randn(9, 3, 256, 256)
    found = encode(vae, pixels)
    assert torch.equal(found.mean, 2 * pixels)
    assert (found.std is not None) is std
    assert vae.seen == [4, 4, 1]
