"""LoRA layouts: literal names, and what is written is found again under the same names."""

from __future__ import annotations

import pytest

from dreambooth_plugins.formats.lora import diffusers, kohya
from dreambooth_plugins.model import StableDiffusion

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT = "encoder.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "module", "role"),
    [
        (f"unet.{Q}.lora_A.weight", ("unet", Q), "down"),
        (f"unet.{Q}.lora.up.weight", ("unet", Q), "up"),
        (f"unet.{Q}.lora_magnitude_vector", ("unet", Q), "magnitude"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
            ("unet", OUT),
            "up",
        ),
        (f"base_model.model.{Q}.lora_B.weight", ("unet", Q), "up"),
        (
            f"text_encoder.text_model.{TEXT}.lora_linear_layer.down.weight",
            ("text_encoder", TEXT),
            "down",
        ),
        (
            "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.down.weight",
            ("text_encoder", TEXT),
            "down",
        ),
    ],
)
def test_names_of_diffusers_and_peft(name, module, role):
    assert diffusers.place(name) == (module, role)


def test_names_of_kohya():
    at = "lora_unet_mid_block_attentions_0_proj_in"
    assert kohya.place(f"{at}.lora_down.weight") == (("unet", at), "down")
    assert kohya.place("lora_te1_text_model_x.alpha") == (
        ("text_encoder", "lora_te1_text_model_x"),
        "alpha",
    )
    at = "lora_te2_text_model_x"
    assert kohya.place(f"{at}.alpha") == (("text_encoder_2", at), "alpha")
    assert kohya.place("lora_te3_text_model_x.alpha") is None
    assert kohya.place("text_model_x.alpha") is None


def test_what_is_written_is_found_again(ctx):
    model = StableDiffusion(source="builtin:tiny").open(ctx)
    here = {tuple(name.split(".", 1)) for name in model.adapter_keys("diffusers")}
    there = {
        diffusers.place(f"{n}.lora_A.weight") for n in model.adapter_keys("diffusers").values()
    }
    assert there == {(module, "down") for module in here}

    names = kohya.modules_by_name(model)
    for full, written in model.adapter_keys("kohya").items():
        ((part, module), role) = kohya.place(f"{written}.lora_up.weight")
        assert (names[module], role) == (full, "up")
        assert part == full.split(".")[0]
