"""What `save` writes: literal key names, configurations, precision, and pictures that agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dreambooth.errors import RunError
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.folder import saving

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def model(tiny_model, ctx):
    return StableDiffusion(source=str(tiny_model)).open(ctx)


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {
        f"{file.parent.name}.{key}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def test_literal_key_names(model, tmp_path):
    list(model.parts.values())
    model.save(tmp_path, model.info.schedule)
    text = set(read_header(tmp_path / TEXT).shapes)
    assert {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "text_model.encoder.layers.1.mlp.fc2.bias",
        "text_model.final_layer_norm.weight",
    } <= text
    assert all(name.startswith("text_model.") for name in text)
    unet = set(read_header(tmp_path / UNET).shapes)
    assert {
        "conv_in.weight",
        "time_embedding.linear_1.bias",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "mid_block.resnets.1.conv2.weight",
    } <= unet
    vae = set(read_header(tmp_path / "vae/diffusion_pytorch_model.safetensors").shapes)
    assert {"encoder.mid_block.attentions.0.to_q.weight", "quant_conv.bias"} <= vae


def test_files_and_configurations(model, tmp_path):
    list(model.parts.values())
    model.save(tmp_path, {**model.info.schedule, "timestep_spacing": "trailing"})
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        TEXT,
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]
    assert index["requires_safety_checker"] is False
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    schedule = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert schedule["timestep_spacing"] == "trailing"
    assert (tmp_path / "tokenizer/merges.txt").read_text().startswith("#version: 0.2\n")
    vocabulary = json.loads((tmp_path / "tokenizer/vocab.json").read_text())
    assert vocabulary["<|endoftext|>"] == 1513
    whole = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text())
    assert whole["padding"] is None
    assert whole["truncation"] is None
    assert (tmp_path / UNET).stat().st_mode == (tmp_path / "model_index.json").stat().st_mode


def test_the_tokenizer_reads_back_from_the_old_files_alone(model, tmp_path):
    from transformers import CLIPTokenizer

    model.encode_prompts(["padding and truncation are set by a call"])
    model.save(tmp_path, model.info.schedule)
    (tmp_path / "tokenizer/tokenizer.json").unlink()
    again = CLIPTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    for text in ("a photo of a ohwx dog", "Ünïcödé, 123!", "", "a dog " * 60):
        assert again(text).input_ids == model.tokenizer(text).input_ids
    assert again.model_max_length == 77


def test_a_saved_model_draws_the_live_models_picture(model, tmp_path):
    """The live loop is written out here: DDIM, guidance 3, no pipeline."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.no_grad():
        for _, p in model.named_parameters("denoiser", "text_encoders"):
            p.mul_(1.01)
    model.save(tmp_path, model.info.schedule)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler = DDIMScheduler.from_config(model.info.schedule)
    scheduler.set_timesteps(4)
    z = start.clone()
    with torch.no_grad():
        cond = model.collate(model.encode_prompts(["", "a photo of a dog"]))
        for t in scheduler.timesteps:
            off, on = model.denoise(torch.cat([z, z]), t.expand(2), cond).chunk(2)
            z = scheduler.step(off + 3.0 * (on - off), t, z).prev_sample
        live = model.decode(z)

    pipe = StableDiffusionPipeline.from_pretrained(str(tmp_path), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a photo of a dog", num_inference_steps=4, guidance_scale=3.0, latents=start,
                 height=32, width=32, output_type="pt").images  # fmt: skip
    assert torch.allclose(drawn, live / 2 + 0.5, atol=1e-5)
    assert live.std() > 0.05


def test_saving_untouched_parts_copies_the_source(model, tmp_path, tiny_model):
    model.save(tmp_path, model.info.schedule)
    assert model.loaded() == ()
    for name in (UNET, TEXT):
        assert (tmp_path / name).read_bytes() == (tiny_model / name).read_bytes()


def test_weights_replace_live_ones_by_qualified_name(model, tmp_path):
    import torch

    name = "text_encoder.encoder.layers.0.self_attn.q_proj.weight"
    live = dict(model.named_parameters("text_encoder"))[name]
    model.save(tmp_path, model.info.schedule, {name: torch.full_like(live, 7.0)})
    saved = tensors(tmp_path)
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert (saved[key] == 7.0).all()
    other = "text_encoder.text_model.encoder.layers.0.self_attn.k_proj.weight"
    encoder = model.parts["text_encoder"].encoder
    assert torch.equal(saved[other], encoder.layers[0].self_attn.k_proj.weight)
    assert not (live == 7.0).all()


def test_a_weight_the_model_does_not_have_is_refused(model, tmp_path):
    import torch

    for name in ("unet.conv_in.lora_A.default.weight", "unet2.conv_in.weight"):
        with pytest.raises(RunError, match=r"has no weight|no weight of this model"):
            model.save(tmp_path, model.info.schedule, {name: torch.zeros(1)})


def test_half_precision_files_hold_the_cast(model, tmp_path, tiny_model):
    import torch

    model.save(tmp_path, model.info.schedule, dtype="fp16")
    before, after = tensors(tiny_model), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert all(after[k].dtype == torch.float16 for k in after)
    assert all(torch.equal(after[k], before[k].half()) for k in after)


def test_a_half_precision_run_exports_frozen_weights_at_full_precision(
    tiny_model, make_ctx, tmp_path
):
    import torch

    model = StableDiffusion(source=str(tiny_model)).open(make_ctx(dtype=torch.bfloat16))
    unet = model.parts["unet"]
    unet.conv_in.weight.data = unet.conv_in.weight.data.float() + 0.001  # what trains is float32
    unet.conv_out.weight.data += 1.0  # changed in place without being trained
    model.save(tmp_path, model.info.schedule)
    before, after = tensors(tiny_model), tensors(tmp_path)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"unet.conv_in.weight", "unet.conv_out.weight"}
    assert torch.equal(after["unet.conv_in.weight"], unet.conv_in.weight)
    assert torch.equal(after["unet.conv_out.weight"], unet.conv_out.weight.float())


def test_injected_adapters_leave_the_base_under_its_own_names(model, tmp_path, tiny_model):
    from peft import LoraConfig

    model.parts["unet"].add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"]))
    assert any("base_layer" in name for name, _ in model.named_parameters("unet"))
    model.save(tmp_path, model.info.schedule)
    before, after = tensors(tiny_model), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert all((before[k] == after[k]).all() for k in before)


def test_added_tokens_are_saved_with_the_model(model, tmp_path, ctx):
    model.tokenizer.add_tokens(["<ohwx>"])
    model.parts["text_encoder"].resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
    model.save(tmp_path, model.info.schedule)
    again = StableDiffusion(source=str(tmp_path)).open(ctx)
    assert again.tokenizer("a <ohwx> dog").input_ids[2] == 1514
    assert again.parts["text_encoder"].embeddings.token_embedding.weight.shape == (1515, 32)


def test_large_parts_are_written_in_shards_that_load_again(model, tmp_path, monkeypatch, ctx):
    import torch

    monkeypatch.setattr(saving, "MAX_SHARD", 1_000_000)
    list(model.parts.values())
    model.save(tmp_path, model.info.schedule)
    files = sorted(p.name for p in (tmp_path / "unet").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].startswith("diffusion_pytorch_model-00001-of-0000")
    assert (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    again = StableDiffusion(source=str(tmp_path)).open(ctx)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_source_without_the_text_model_prefix_is_saved_with_it(tiny_model, tmp_path, ctx):
    """As transformers 5 writes its text encoders."""
    import torch
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    state = load_file(source / TEXT)
    bare = {k.removeprefix("text_model."): v for k, v in state.items()}
    save_file(bare, source / TEXT, metadata={"format": "pt"})
    model = StableDiffusion(source=str(source)).open(ctx)
    model.save(tmp_path / "saved", model.info.schedule)
    saved = load_file(tmp_path / "saved" / TEXT)
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[k], state[k]) for k in state)


def test_at_points_at_a_saved_folder(model, tmp_path):
    model.save(tmp_path, model.info.schedule)
    config = StableDiffusion(source="builtin:emoji-64", variant="fp16", vae="elsewhere")
    assert config.at(tmp_path) == StableDiffusion(source=str(tmp_path))
    assert config.at(tmp_path).describe().resolution == 32


def test_attention_names_of_old_vae_files_are_read_and_written_anew(tiny_model, tmp_path, ctx):
    """The published SD 1.x VAEs still say query, key, value and proj_attn."""
    import torch
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    file = source / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key: str) -> str:
        for new, was in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        return key

    save_file({rename(k): v for k, v in state.items()}, file, metadata={"format": "pt"})
    model = StableDiffusion(source=str(source)).open(ctx)
    model.save(tmp_path / "saved", model.info.schedule)
    saved = load_file(tmp_path / "saved/vae/diffusion_pytorch_model.safetensors")
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[k], state[k]) for k in state)
