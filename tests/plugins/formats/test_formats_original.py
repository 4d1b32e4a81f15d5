"""The original layout: an inverse of diffusers' converters, on the real key sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

import dreambooth_plugins
from dreambooth.errors import RunError
from dreambooth_plugins.formats.original.limits import original_refusal
from dreambooth_plugins.formats.original.names import to_original
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.stable_diffusion_info import model_info
from sd_folder import PARTS, Source

PLUGINS = Path(dreambooth_plugins.__file__).parent
CONFIGS = PLUGINS / "model" / "configs"
FOLDERS = {
    "sd15": CONFIGS / "sd15",
    "sd21": CONFIGS / "sd21",
    "tiny": CONFIGS / "tiny",
    "emoji-64": PLUGINS / "base_emoji" / "emoji-64",
}


def numbered(source, part):
    """Return a part's tensors with shapes as they are and a number each that tells them apart.

    Expanded from one number, so that a model of a billion weights takes no memory.
    """
    state = skeleton(source, part).state_dict()
    return {
        source.part(part).file_key(name): torch.tensor(float(i)).expand(tensor.shape)
        for i, (name, tensor) in enumerate(state.items())
    }


def original(source, part):
    configs = {name: source.part_config(name) for name in PARTS}
    return to_original(part, numbered(source, part), configs, source.part(part).original)


def back(source, part, tensors):
    """Convert with diffusers' own converter."""
    config = source.part_config(part)
    if part == "unet":
        return convert_ldm_unet_checkpoint(tensors, config)
    if part == "vae":
        return convert_ldm_vae_checkpoint(tensors, config)
    if any(name.startswith("cond_stage_model.model.") for name in tensors):
        return convert_open_clip_checkpoint(skeleton(source, part), tensors)
    return convert_ldm_clip_checkpoint(tensors)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", FOLDERS)
def test_diffusers_converter_gives_back_every_tensor(name, part):
    source = Source(FOLDERS[name])
    ours, expected = original(source, part), numbered(source, part)
    got = back(source, part, ours)
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert got[key].shape == tensor.shape, key
        assert got[key].flatten()[0] == tensor.flatten()[0], key
    if part != "text_encoder":
        assert len(ours) == len(expected)


NAMES = {
    "model.diffusion_model.time_embed.0.weight": (1280, 320),
    "model.diffusion_model.time_embed.2.bias": (1280,),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.input_blocks.11.0.out_layers.3.bias": (1280,),
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
    "model.diffusion_model.middle_block.2.emb_layers.1.weight": (1280, 1280),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.down.2.downsample.conv.bias": (512,),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.block_2.norm1.weight": (512,),
    "first_stage_model.decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.norm_out.weight": (128,),
    "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.out_proj.bias": (768,),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}


def test_names_and_shapes_of_sd15_literally():
    source = Source(FOLDERS["sd15"])
    ours = {n: tuple(t.shape) for part in PARTS for n, t in original(source, part).items()}
    assert NAMES.items() <= ours.items()
    # 686 of the UNet, 248 of the VAE, 196 of CLIP: what the original file has as weights.
    assert len(ours) == 686 + 248 + 196


def test_names_and_shapes_of_open_clip_literally():
    ours = original(Source(FOLDERS["sd21"]), "text_encoder")
    at = "cond_stage_model.model."
    expected = {
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "ln_final.bias": (1024,),
        "transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "transformer.resblocks.22.attn.in_proj_bias": (3072,),
        "transformer.resblocks.0.attn.out_proj.weight": (1024, 1024),
        "transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        "transformer.resblocks.0.ln_2.weight": (1024,),
        "transformer.resblocks.23.mlp.c_proj.bias": (1024,),
    }
    shapes = {n.removeprefix(at): tuple(t.shape) for n, t in ours.items()}
    assert all(n.startswith(at) for n in ours)
    assert expected.items() <= shapes.items()
    assert len(shapes) == 4 + 24 * 12


@pytest.mark.parametrize("name", FOLDERS)
def test_every_shipped_configuration_can_be_written_so(name):
    assert model_info(Source(FOLDERS[name])).layouts == {"original": "", "kohya": ""}


@pytest.mark.parametrize(
    ("part", "option", "reason"),
    [
        ("unet", {"layers_per_block": [1, 2]}, "differ in their number of layers"),
        ("unet", {"down_block_types": ["ResnetDownsampleBlock2D"]}, "ResnetDownsampleBlock2D"),
        ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "SimpleCrossAttn"),
        ("unet", {"addition_embed_type": "text"}, "addition_embed_type"),
        ("unet", {"encoder_hid_dim": 64}, "encoder_hid_dim"),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
    ],
)
def test_what_the_layout_cannot_say_is_refused_with_the_reason(part, option, reason):
    configs = {
        p: json.loads((FOLDERS["tiny"] / p / "config.json").read_text()) for p in ("unet", "vae")
    }
    assert original_refusal(configs["unet"], configs["vae"]) == ""
    configs[part] |= option
    assert reason in original_refusal(configs["unet"], configs["vae"])


@pytest.mark.parametrize(
    ("name", "part"), [("sd15", "unet"), ("sd15", "vae"), ("sd21", "text_encoder")]
)
def test_a_weight_without_a_place_is_named(name, part):
    source = Source(FOLDERS[name])
    configs = {p: source.part_config(p) for p in PARTS}
    with pytest.raises(RunError, match=f"no place for {part}.strange.weight"):
        to_original(part, {"strange.weight": torch.zeros(1)}, configs, "")
