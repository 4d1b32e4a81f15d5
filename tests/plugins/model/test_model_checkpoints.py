"""Checkpoints as people have them: other names, averages, variants, shards, links, eight bits."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model_describe import original_layout, write_header
from test_model_single_file import expect_same_parts, original_checkpoint

from dreambooth.errors import JobError
from dreambooth.interfaces import ModelInfo
from dreambooth_plugins.model import SDXL, Auto, StableDiffusion

U, C = "model.diffusion_model.", "cond_stage_model.transformer."
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture
def state(tiny_model):
    """The tiny model in the original layout, as an independent writer names it."""
    return {k: v.contiguous() for k, v in original_checkpoint(tiny_model).items()}


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model's folder."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def loaded(state, tiny_model, tmp_path, ctx, **options):
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    return StableDiffusion(source=str(file), config=str(tiny_model), **options).open(ctx)


def renamed(state, old, new):
    return {re.sub(old, new, name): tensor for name, tensor in state.items()}


def without_text_model(state):
    return renamed(state, "^cond_stage_model.transformer.text_model.", C)


def half_without(state):
    """A merge of two files: the layers have it, the embeddings do not."""
    return renamed(state, r"^cond_stage_model\.transformer\.text_model\.embeddings\.",
                   f"{C}embeddings.")  # fmt: skip


def with_average(state):
    flat = {name: name.removeprefix(U).replace(".", "") for name in state if name.startswith(U)}
    average = {f"model_ema.diffusion_model{f}": state[n] * 2 for n, f in flat.items()}
    more = {"model_ema.num_updates": torch.tensor(1, dtype=torch.int32)}
    return {**state, **average, **more}


def with_schedule(state):
    names = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "log_one_minus_alphas_cumprod")
    positions = {f"{C}text_model.embeddings.position_ids": torch.arange(77)[None].half()}
    return {**state, **{n: torch.linspace(0, 1, 1000) for n in names}, **positions}


def with_strangers(state):
    """Bits that mergers and trainers leave: a loss's weights, a control net's hint, a counter."""
    return {
        **state, "logvar": torch.zeros(1000), "global_step": torch.tensor(3),
        "embedding_manager.embedder.weight": torch.zeros(3, 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [without_text_model, half_without, with_average, with_schedule, with_strangers],
)
def test_a_file_that_others_have_changed_is_the_same_model(
    state, tiny_model, tmp_path, ctx, change
):
    model = loaded(change(state), tiny_model, tmp_path, ctx)
    expect_same_parts(model, StableDiffusion(source=str(tiny_model)).open(ctx))


def test_sdxl_s_first_text_encoder_may_lack_it_too():
    from dreambooth_plugins.formats.original.names import with_text_model

    at = "conditioner.embedders.0.transformer."
    assert with_text_model(f"{at}encoder.layers.0.x") == f"{at}text_model.encoder.layers.0.x"
    for name in (f"{at}text_model.encoder.x", "conditioner.embedders.1.model.ln_final.weight",
                 f"{U}encoder.x", "cond_stage_model.model.transformer.resblocks.0.x"):  # fmt: skip
        assert with_text_model(name) == name


def test_an_average_alone_is_told(tmp_path):
    shapes = {n: s for n, s in original_layout(768).items() if not n.startswith(U)}
    shapes["model_ema.diffusion_modeltime_embed0weight"] = (4, 4)
    file = write_header(tmp_path / "m.safetensors", shapes)
    with pytest.raises(JobError, match="the UNet's average alone"):
        StableDiffusion(source=str(file)).describe()


# --- what it predicts


def v_tensor(shapes):
    return {**shapes, "v_pred": (0,)}


@pytest.mark.parametrize(
    ("width", "options", "metadata", "change", "prediction"),
    [
        (768, {}, {}, dict, "epsilon"),
        (768, {"prediction": "v_prediction"}, {}, dict, "v_prediction"),
        (768, {}, {"modelspec.prediction_type": "v"}, dict, "v_prediction"),
        (768, {}, {}, v_tensor, "v_prediction"),
        (1024, {"prediction": "v_prediction"}, {}, dict, "v_prediction"),
        (1024, {"prediction": "epsilon"}, {}, dict, "epsilon"),
        (1024, {}, {}, v_tensor, "v_prediction"),
        # The job's word counts before the file's.
        (1024, {"prediction": "epsilon"}, {"modelspec.prediction_type": "v"}, dict, "epsilon"),
        (768, {"prediction": "epsilon", "config": "builtin:sd15"}, {}, v_tensor, "epsilon"),
    ],
)
def test_what_a_single_file_predicts(tmp_path, width, options, metadata, change, prediction):
    file = write_header(tmp_path / "m.safetensors", change(original_layout(width)), **metadata)
    info = StableDiffusion(source=str(file), **options).describe()
    assert info.prediction == prediction
    assert info.schedule["prediction_type"] == prediction


def test_a_v_file_trains_towards_v(state, tiny_model, tmp_path, ctx, small_job):
    model = loaded(state, tiny_model, tmp_path, ctx, prediction="v_prediction")
    schedule = small_job().scheduler.open(model.info)
    size = (32, 32)
    assert schedule.solver_config(size, 2)["prediction_type"] == "v_prediction"
    draw = schedule.draw((4, 4, 4), [torch.Generator().manual_seed(0)])
    z = torch.ones(1, 4, 4, 4)
    a = schedule.alphas_cumprod[draw.t].view(-1, 1, 1, 1)
    expected = a.sqrt() * draw.noise - (1 - a).sqrt() * z
    torch.testing.assert_close(schedule.target(z, draw), expected)


def test_a_folder_may_be_told_what_it_predicts(folder):
    info = StableDiffusion(source=str(folder), prediction="v_prediction").describe()
    assert info.prediction == "v_prediction"
    auto = Auto(source=str(folder), prediction="v_prediction").family()
    assert auto.describe().prediction == "v_prediction"


# --- variants, shards, pickles, links


def sharded(folder, part="unet", stem="diffusion_pytorch_model"):
    file = folder / part / f"{stem}.safetensors"
    state = load_file(file)
    names, where = sorted(state), {}
    for i, some in enumerate((names[::2], names[1::2])):
        shard = f"{stem}-0000{i + 1}-of-00002.safetensors"
        save_file({n: state[n] for n in some}, folder / part / shard)
        where |= dict.fromkeys(some, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()


def shards_of_both(folder):
    sharded(folder)
    sharded(folder, "text_encoder", "model")


def variant(folder):
    os.rename(folder / f"{UNET}.safetensors", folder / f"{UNET}.fp16.safetensors")


def pickled(folder):
    for part, stem, name in (("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
                             ("text_encoder", "model", "pytorch_model"),
                             ("vae", "diffusion_pytorch_model",
                              "diffusion_pytorch_model")):  # fmt: skip
        file = folder / part / f"{stem}.safetensors"
        torch.save(load_file(file), folder / part / f"{name}.bin")
        file.unlink()


def one_pickled(folder):
    torch.save(load_file(folder / f"{UNET}.safetensors"), folder / f"{UNET}.bin")
    (folder / f"{UNET}.safetensors").unlink()


def linked(folder):
    """As the hub's cache has it: names that lead to hashes."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(f for f in folder.rglob("*.*") if f.is_file())):
        os.rename(file, blobs / str(i))
        file.symlink_to(blobs / str(i))


def linked_whole(folder):
    os.rename(folder, folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"), target_is_directory=True)


def linked_parts(folder):
    for part in ("unet", "vae"):
        os.rename(folder / part, folder.with_name(part))
        (folder / part).symlink_to(folder.with_name(part), target_is_directory=True)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (sharded, {}),
        (shards_of_both, {}),
        (variant, {"variant": "fp16"}),
        (pickled, {"allow_pickle": True}),
        (one_pickled, {"allow_pickle": True}),
        (linked, {}),
        (linked_whole, {}),
        (linked_parts, {}),
    ],
)
def test_a_folder_laid_out_otherwise_is_the_same_model(folder, tiny_model, ctx, change, options):
    change(folder)
    source = StableDiffusion(source=str(folder), **options)
    assert isinstance(source.describe(), ModelInfo)
    expect_same_parts(source.open(ctx), StableDiffusion(source=str(tiny_model)).open(ctx))


def test_a_linked_file_is_the_file_it_leads_to(state, tiny_model, tmp_path, ctx):
    loaded(state, tiny_model, tmp_path, ctx)
    os.rename(tmp_path / "model.safetensors", tmp_path / "0a1b2c")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "0a1b2c")
    source = StableDiffusion(source=str(tmp_path / "link.safetensors"), config=str(tiny_model))
    expect_same_parts(source.open(ctx), StableDiffusion(source=str(tiny_model)).open(ctx))


def test_a_link_to_nothing_is_told(folder):
    (folder / f"{UNET}.safetensors").unlink()
    (folder / f"{UNET}.safetensors").symlink_to("nowhere")
    with pytest.raises(JobError, match="holds no weights"):
        StableDiffusion(source=str(folder)).describe()


# --- eight bits


def in_fp8(tensors):
    return {n: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for n, t in tensors.items()}


def as_file(folder, state, tiny_model):
    save_file(in_fp8(state), folder.parent / "fp8.safetensors")
    return {"source": str(folder.parent / "fp8.safetensors"), "config": str(tiny_model)}


def as_unet(folder, state, tiny_model):
    file = folder / f"{UNET}.safetensors"
    save_file(in_fp8(load_file(file)), file)
    return {"source": str(folder)}


def as_text_encoder(folder, state, tiny_model):
    file = folder / "text_encoder/model.safetensors"
    save_file(in_fp8(load_file(file)), file)
    return {"source": str(folder)}


@pytest.mark.parametrize("make", [as_file, as_unet, as_text_encoder])
def test_weights_of_eight_bits_are_read_and_told(folder, state, tiny_model, ctx, make):
    model = StableDiffusion(**make(folder, state, tiny_model)).open(ctx)
    [said] = ctx.warnings
    assert "rounded to 8 bits (fp8)" in said
    part = "text_encoder" if make is as_text_encoder else "unet"
    plain = StableDiffusion(source=str(tiny_model)).open(ctx).parts[part].state_dict()
    for name, tensor in model.parts[part].state_dict().items():
        assert tensor.dtype == torch.float32
        exact = plain[name]
        rounded = exact.to(torch.float8_e4m3fn).float() if exact.ndim > 1 else exact
        assert torch.equal(tensor, rounded), name


@pytest.mark.parametrize(
    "name", [f"{U}out.2.scale_weight", "scaled_fp8", f"{U}input_blocks.1.1.proj_in.weight_scale"]
)
def test_weights_that_want_scales_are_refused(tmp_path, name):
    file = write_header(tmp_path / "m.safetensors", {**original_layout(768), name: (1,)})
    with pytest.raises(JobError, match="eight bits with scales of their own"):
        StableDiffusion(source=str(file)).describe()


# --- other families


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        (f"{U}double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("single_transformer_blocks.0.attn.to_q.weight", "Flux"),
        (f"{U}joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        (f"{U}txt_norm.weight", "Qwen-Image"),
        (f"{U}patch_embedding.weight", "Wan"),
        ("cap_embedder.0.weight", "Z-Image or Lumina"),
        (f"{U}adaln_single.linear.weight", "PixArt"),
    ],
)
@pytest.mark.parametrize("kind", [StableDiffusion, SDXL, Auto])
def test_a_file_of_another_family_is_called_by_its_name(tmp_path, kind, name, family):
    file = write_header(tmp_path / "m.safetensors", {name: (4, 4)})
    model = kind(source=str(file))
    with pytest.raises(JobError, match=f"is a {family} checkpoint"):
        (model.family() if kind is Auto else model).describe()


@pytest.mark.parametrize(
    "name", ["conditioner.embedders.1.model.ln_final.weight", f"{U}label_emb.0.0.weight"]
)
def test_sdxl_is_called_by_its_name_and_found_by_auto(tmp_path, name):
    file = write_header(tmp_path / "m.safetensors", {**original_layout(2048), name: (4, 4)})
    with pytest.raises(JobError, match="is a SDXL checkpoint") as caught:
        StableDiffusion(source=str(file)).describe()
    assert caught.value.hint == "set model.kind: sdxl"
    assert Auto(source=str(file)).family().kind == "sdxl"


def test_weights_of_a_few_bits_are_told(tmp_path):
    (tmp_path / "model-Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(JobError, match="GGUF"):
        StableDiffusion(source=str(tmp_path / "model-Q4.gguf")).describe()
