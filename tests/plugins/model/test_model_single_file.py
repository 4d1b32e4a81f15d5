"""Single checkpoints in the original layout: written here by an inverse mapping, loaded offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_plugins.model import StableDiffusion

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
                 "to_out.0": "proj_out"}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def moved(state, old, new, names=None):
    """Yield what lies under `old`, under `new`, its modules renamed by `names`."""
    for key, tensor in state.items():
        if key.startswith(f"{old}."):
            inner = key.removeprefix(f"{old}.")
            if names is not None:
                module, _, leaf = inner.rpartition(".")
                inner = f"{names.get(module, module)}.{leaf}"
            yield f"{new}.{inner}", tensor


def original_unet(state, layers=1, blocks=2):
    """`input_blocks`, `middle_block` and `output_blocks` are numbered through all levels."""
    out = {}
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
    }.items():
        out.update(moved(state, ours, theirs))
    for i in (0, 1):
        out.update(moved(state, f"mid_block.resnets.{i}", f"middle_block.{2 * i}", RESNET))
    number = 1
    for block in range(blocks):
        for layer in range(layers):
            at, to = f"down_blocks.{block}", f"input_blocks.{number}"
            out.update(moved(state, f"{at}.resnets.{layer}", f"{to}.0", RESNET))
            out.update(moved(state, f"{at}.attentions.{layer}", f"{to}.1"))
            number += 1
        if block < blocks - 1:
            to = f"input_blocks.{number}.0.op"
            out.update(moved(state, f"down_blocks.{block}.downsamplers.0.conv", to))
            number += 1
    number = 0
    for block in range(blocks):
        for layer in range(layers + 1):
            at, to = f"up_blocks.{block}", f"output_blocks.{number}"
            out.update(moved(state, f"{at}.resnets.{layer}", f"{to}.0", RESNET))
            attention = dict(moved(state, f"{at}.attentions.{layer}", f"{to}.1"))
            out.update(attention)
            if layer == layers:
                place = 2 if attention else 1
                out.update(moved(state, f"{at}.upsamplers.0.conv", f"{to}.{place}.conv"))
            number += 1
    assert len(out) == len(state)
    return out


def original_vae(state, layers=1, blocks=3):
    """Levels of the decoder count from the smallest picture up."""
    out = {}
    names = {"conv_shortcut": "nin_shortcut"}
    for ours in ("quant_conv", "post_quant_conv"):
        out.update(moved(state, ours, ours))
    for half in ("encoder", "decoder"):
        for ours, theirs in {"conv_in": "conv_in", "conv_norm_out": "norm_out",
                             "conv_out": "conv_out"}.items():  # fmt: skip
            out.update(moved(state, f"{half}.{ours}", f"{half}.{theirs}"))
        for i in (0, 1):
            to = f"{half}.mid.block_{i + 1}"
            out.update(moved(state, f"{half}.mid_block.resnets.{i}", to, names))
        attention = moved(state, f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1",
                          VAE_ATTENTION)  # fmt: skip
        for key, tensor in attention:
            # The original uses 1 x 1 convolutions.
            out[key] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    for block in range(blocks):
        level = blocks - 1 - block
        for i in range(layers):
            to = f"encoder.down.{block}.block.{i}"
            out.update(moved(state, f"encoder.down_blocks.{block}.resnets.{i}", to, names))
        for i in range(layers + 1):
            to = f"decoder.up.{level}.block.{i}"
            out.update(moved(state, f"decoder.up_blocks.{block}.resnets.{i}", to, names))
        out.update(moved(state, f"encoder.down_blocks.{block}.downsamplers.0.conv",
                         f"encoder.down.{block}.downsample.conv"))  # fmt: skip
        out.update(moved(state, f"decoder.up_blocks.{block}.upsamplers.0.conv",
                         f"decoder.up.{level}.upsample.conv"))  # fmt: skip
    assert len(out) == len(state)
    return out


def open_clip(state, layers=2):
    """The text encoder as SD 2.x files have it: q, k and v in one matrix, and one layer more."""
    import torch

    out = {
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": torch.zeros(32, 32),
    }
    out.update(moved(state, "text_model.final_layer_norm", "ln_final"))
    for layer in range(layers):
        at, to = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for ours, theirs in OPEN_CLIP.items():
            out.update(moved(state, f"{at}.{ours}", f"{to}.{theirs}"))
        for leaf in ("weight", "bias"):
            qkv = [state[f"{at}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            out[f"{to}.attn.in_proj_{leaf}"] = torch.cat(qkv)
    return out


def original_checkpoint(folder: Path, text: str = "clip"):
    import torch
    from safetensors.torch import load_file

    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    encoder = load_file(folder / "text_encoder/model.safetensors")
    if text == "clip":
        encoder["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        encoder = {f"transformer.{k}": v for k, v in encoder.items()}
    else:
        encoder = {f"model.{k}": v for k, v in open_clip(encoder).items()}
    return {
        **{f"model.diffusion_model.{k}": v for k, v in original_unet(unet).items()},
        **{f"first_stage_model.{k}": v for k, v in original_vae(vae).items()},
        **{f"cond_stage_model.{k}": v for k, v in encoder.items()},
        "model_ema.decay": torch.tensor(0.9999),
    }


def expect_same_parts(model, reference):
    import torch

    for name in reference.parts:
        got, expected = model.parts[name].state_dict(), reference.parts[name].state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected), name


@pytest.mark.parametrize("text", ["clip", "open_clip"])
def test_a_single_file_loads_bit_equal_to_its_folder(tiny_model, tmp_path, ctx, text):
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in original_checkpoint(tiny_model, text).items()}, file)
    model = StableDiffusion(source=str(file), config=str(tiny_model)).open(ctx)
    reference = StableDiffusion(source=str(tiny_model)).open(ctx)
    expect_same_parts(model, reference)
    assert model.tokenizer("a dog").input_ids == reference.tokenizer("a dog").input_ids
    assert len({model.fingerprint(part) for part in model.parts}) == 3


def test_a_pickled_checkpoint_loads_when_allowed(tiny_model, tmp_path, ctx):
    import torch

    file = tmp_path / "model.ckpt"
    state = {**original_checkpoint(tiny_model), "not.a.tensor": 3}
    torch.save({"state_dict": state, "epoch": 1}, file)
    source = {"source": str(file), "config": str(tiny_model)}
    model = StableDiffusion(**source, allow_pickle=True).open(ctx)
    expect_same_parts(model, StableDiffusion(source=str(tiny_model)).open(ctx))


def test_a_pickle_with_code_in_it_is_refused_even_when_pickles_are_allowed(
    tiny_model, tmp_path, ctx
):
    import torch

    from dreambooth.errors import RunError

    class Code:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": original_checkpoint(tiny_model), "hook": Code()}, file)
    model = StableDiffusion(source=str(file), config=str(tiny_model), allow_pickle=True).open(ctx)
    with pytest.raises(RunError, match="holds more than weights"):
        model.parts["unet"]


def test_a_file_that_does_not_fit_its_configuration_says_so(tiny_model, tmp_path, ctx):
    from safetensors.torch import save_file

    from dreambooth.errors import RunError

    state = {k: v.contiguous() for k, v in original_checkpoint(tiny_model).items()}
    state.pop("model.diffusion_model.input_blocks.1.0.in_layers.2.weight")
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    model = StableDiffusion(source=str(file), config=str(tiny_model)).open(ctx)
    with pytest.raises(RunError, match="its unet does not fit the configuration"):
        model.parts["unet"]


def test_a_single_vae_file_in_the_original_layout_replaces_the_vae(tiny_model, tmp_path, ctx):
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_model / "vae/diffusion_pytorch_model.safetensors")
    file = tmp_path / "vae.safetensors"
    save_file({k: v.contiguous() * 3 for k, v in original_vae(state).items()}, file)
    model = StableDiffusion(source=str(tiny_model), vae=str(file)).open(ctx)
    got = model.parts["vae"].state_dict()
    assert all(torch.equal(got[key], state[key] * 3) for key in state)


def test_a_single_file_is_saved_as_a_folder(tiny_model, tmp_path, ctx):
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in original_checkpoint(tiny_model).items()}, file)
    model = StableDiffusion(source=str(file), config=str(tiny_model)).open(ctx)
    model.save(tmp_path / "saved", model.info.schedule)
    assert model.loaded() == ()
    saved = model_at(model, tmp_path / "saved", ctx)
    expect_same_parts(saved, StableDiffusion(source=str(tiny_model)).open(ctx))


def model_at(model, folder, ctx):
    return StableDiffusion(source=str(model.source.file)).at(folder).open(ctx)
