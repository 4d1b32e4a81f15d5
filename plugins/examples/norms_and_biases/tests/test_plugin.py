"""What the slot's base promises, and what this policy does: python -m pytest."""

import pytest
from dreambooth.testing import FreezingPolicyConformance

from norms_and_biases.plugin import NormsAndBiases, chosen


class TestNormsAndBiases(FreezingPolicyConformance):
    component = NormsAndBiases()


def transformer():
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.mark.parametrize("network", [unet, transformer])
def test_norms_and_biases_of_unets_and_transformers_alike(network):
    made = network()
    norms = dict(chosen(made, norms=True, biases=False))
    biases = dict(chosen(made, norms=False, biases=True))
    assert any("norm" in name for name in norms)
    assert all(p.dim() == 1 for p in norms.values())
    assert set(biases) == {n for n, _ in made.named_parameters() if n.endswith(".bias")}
    both = dict(chosen(made, norms=True, biases=True))
    assert set(both) == set(norms) | set(biases)
    share = sum(p.numel() for p in both.values()) / sum(p.numel() for p in made.parameters())
    assert 0 < share < 0.1


def test_a_policy_of_nothing_is_refused():
    [problem] = NormsAndBiases(norms=False, biases=False).check(None, None)
    assert "nothing trains" in problem.message
