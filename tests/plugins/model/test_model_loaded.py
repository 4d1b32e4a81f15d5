"""The opened model against plain diffusers and transformers calls."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from dreambooth.errors import JobError
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
from dreambooth_plugins.model.folder.fingerprint import file_hash

PROMPTS = ["a photo of a dog", "a cat on the moon", ""]


@pytest.fixture
def model(tiny_model, ctx):
    return StableDiffusion(source=str(tiny_model)).open(ctx)


@pytest.fixture(scope="module")
def plain(tiny_model):
    """Tokenizer, text encoder, UNet and VAE as the libraries load them."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(1)
    folder = str(tiny_model)
    return (
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
    )


def test_latents_are_the_scaled_moments_of_the_vae(model, plain):
    import torch

    vae = plain[3]
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = model.encode_images(pixels)
        expected = vae.encode(pixels).latent_dist
    assert latents.mean.shape == (2, 4, 8, 12)
    assert torch.equal(latents.mean, expected.mean * vae.config.scaling_factor)
    assert torch.equal(latents.std, expected.std * vae.config.scaling_factor)


def test_a_shifted_vae_is_shifted(tiny_model, tmp_path, ctx):
    import torch

    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    file = folder / "vae/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shift_factor": 0.25}))
    shifted = StableDiffusion(source=str(folder)).open(ctx)
    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    pixels = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        a, b = base.encode_images(pixels), shifted.encode_images(pixels)
        assert torch.allclose(b.mean, a.mean - 0.25 * 0.75)
        assert torch.equal(a.std, b.std)
        assert torch.allclose(base.decode(a.mean), shifted.decode(b.mean), atol=1e-5)


def test_decode_undoes_the_scale_and_clamps(model, plain):
    import torch

    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 20
    with torch.no_grad():
        pixels = model.decode(latents)
        raw = plain[3].decode(latents / 0.75).sample
    assert torch.equal(pixels, raw.clamp(-1, 1))
    assert raw.abs().max() > 1.0  # the clamp did something


def test_embeddings_equal_the_text_encoder_on_padded_tokens(model, plain):
    import torch

    tokenizer, encoder = plain[:2]
    ids = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        conditionings = model.encode_prompts(PROMPTS)
        expected = encoder(ids).last_hidden_state
    assert [c.tensors["embeds"].shape for c in conditionings] == [(77, 32)] * 3
    assert torch.equal(model.collate(conditionings).tensors["embeds"], expected)


def test_prediction_equals_the_unet(model, plain):
    import torch

    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([1, 500, 999])
    with torch.no_grad():
        cond = model.collate(model.encode_prompts(PROMPTS))
        got = model.denoise(z, t, cond)
        expected = plain[2](z, t, encoder_hidden_states=cond.tensors["embeds"]).sample
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_a_prompt_that_is_cut_short_is_warned_about_once(model, ctx):
    model.encode_prompts(["a dog", "a dog " * 60])
    model.encode_prompts(["a dog " * 60])
    assert len(ctx.warnings) == 1
    assert "reads 75 tokens" in ctx.warnings[0]
    assert "has 180" in ctx.warnings[0]


def test_everything_is_frozen_and_in_eval_mode(model):
    parts = list(model.parts.values())
    assert not any(module.training for part in parts for module in part.modules())
    assert not any(p.requires_grad for _, p in model.named_parameters())


def test_the_vae_stays_float32_in_a_half_precision_run(tiny_model, make_ctx):
    import torch

    ctx = make_ctx(dtype=torch.bfloat16)
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    assert model.parts["unet"].dtype == model.parts["text_encoder"].dtype == torch.bfloat16
    assert model.parts["vae"].dtype == torch.float32
    reference = StableDiffusion(source=str(tiny_model)).open(make_ctx())
    pixels = torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16)
    with torch.no_grad(), ctx.autocast():
        cond = model.collate(model.encode_prompts(["a dog"]))
        assert model.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), cond).isfinite().all()
        got = model.encode_images(pixels).mean
    with torch.no_grad():
        assert torch.equal(got, reference.encode_images(pixels).mean)


def test_parts_load_when_asked_for_and_leave(model):
    import torch

    assert model.loaded() == ()
    assert list(model.parts) == ["unet", "text_encoder", "vae"]
    assert model.loaded() == ()
    weight = model.parts["unet"].conv_in.weight
    before = weight.clone()
    assert model.loaded() == ("unet",)
    with torch.no_grad():
        weight.add_(1.0)
    model.release("unet")
    model.release("unet")
    assert model.loaded() == ()
    assert torch.equal(model.parts["unet"].conv_in.weight, before)
    with pytest.raises(KeyError):
        model.parts["text_encoder_2"]


def test_loading_draws_nothing_from_the_global_generator(model):
    import torch

    torch.manual_seed(5)
    state = torch.get_rng_state()
    list(model.parts.values())
    model.tokenizer.tokenize("a dog")
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_copy_does_not_follow_training(model):
    import torch

    z, t = torch.ones(1, 4, 8, 8), torch.tensor([10])
    with torch.no_grad():
        cond = model.collate(model.encode_prompts(["a dog"]))
        model.parts["unet"].train()
        model.embeddings["a dog"] = model.encode_prompts(["a dog"])[0]
        base = model.denoise(z, t, cond)
        copy = model.frozen_copy()
        copy.embeddings.clear()
        for _, p in model.named_parameters("denoiser", "text_encoders"):
            p.add_(0.05)
        assert not torch.equal(model.denoise(z, t, cond), base)
        assert torch.equal(copy.denoise(z, t, cond), base)
        assert torch.equal(copy.collate(copy.encode_prompts(["a dog"])).tensors["embeds"],
                           cond.tensors["embeds"])  # fmt: skip
    assert "a dog" in model.embeddings
    assert copy.parts["vae"] is model.parts["vae"]
    assert not copy.parts["unet"].training
    copy.release("vae")
    assert "vae" in model.loaded()


@pytest.mark.parametrize("training", [False, True])
def test_gradient_checkpointing_recomputes_in_either_mode(tiny_model, ctx, training):
    import torch

    def run(checkpointing: bool):
        model = StableDiffusion(source=str(tiny_model)).open(ctx)
        calls = {"text": 0, "unet": 0}
        encoder, unet = model.parts["text_encoder"], model.parts["unet"]
        for name, module in (
            ("text", encoder.encoder.layers[0].mlp),
            ("unet", unet.mid_block.resnets[1]),
        ):
            module.register_forward_pre_hook(lambda *_, n=name: calls.__setitem__(n, calls[n] + 1))
        # Frozen but for one early weight each, as with an adapter.
        chosen = [unet.conv_in.weight, encoder.encoder.layers[0].self_attn.q_proj.weight]
        for p in chosen:
            p.requires_grad_(True)
        if checkpointing:
            model.enable_gradient_checkpointing(["unet", "text_encoder"])
        if training:
            unet.train()
            encoder.train()
        cond = model.collate(model.encode_prompts(["a dog"]))
        model.denoise(torch.ones(1, 4, 8, 8), torch.tensor([7]), cond).square().mean().backward()
        return calls, [p.grad for p in chosen]

    plain_calls, plain_grads = run(False)
    calls, grads = run(True)
    assert plain_calls == {"text": 1, "unet": 1}
    assert calls == {"text": 2, "unet": 2}
    assert all(torch.equal(a, b) for a, b in zip(plain_grads, grads, strict=True))
    assert all(g.abs().sum() > 0 for g in grads)


def test_clip_token_ids():
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    assert len(vocabulary) == 49408
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    assert tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert tokenizer("sks").input_ids == [49406, 48136, 49407]


@pytest.mark.parametrize(
    ("config", "counts", "pad"),
    [
        ("sd15", (859_520_964, 123_060_480, 83_653_863), 49407),
        ("sd21", (865_910_724, 340_387_840, 83_653_863), 0),
    ],
)
def test_meta_device_counts_real_sizes_and_the_tokenizer_pads_as_published(
    tmp_path, make_ctx, config, counts, pad
):
    width = 768 if config == "sd15" else 1024
    text = "transformer.text_model." if width == 768 else "model.transformer."
    unet = "model.diffusion_model.input_blocks."
    names = {
        f"{unet}0.0.weight": [1, 4, 1, 1],
        f"{unet}1.1.transformer_blocks.0.attn2.to_k.weight": [1, width],
        "first_stage_model.x": [1],
        f"cond_stage_model.{text}x": [1],
    }
    import numpy as np
    from safetensors.numpy import save_file

    file = tmp_path / "m.safetensors"
    save_file({k: np.zeros(v, np.float16) for k, v in names.items()}, file)
    source = StableDiffusion(source=str(file), config=f"builtin:{config}")
    model = source.open(make_ctx(device="meta"))
    found = tuple(sum(p.numel() for p in m.parameters()) for m in model.parts.values())
    assert found == counts
    ids = model.tokenizer("dog", padding="max_length", max_length=77).input_ids
    assert ids[:4] == [49406, 1929, 49407, pad]


def test_fingerprint_follows_content_not_names(tiny_model, tmp_path, ctx):
    from safetensors.torch import load_file, save_file

    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    prints = {part: base.fingerprint(part) for part in base.parts}
    assert len(set(prints.values())) == 3
    assert base.loaded() == ()

    folder = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere"))
    other = StableDiffusion(source=str(folder)).open(ctx)
    assert {part: other.fingerprint(part) for part in other.parts} == prints

    file = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.bias"] += 1e-3
    save_file(state, file)
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    assert other.fingerprint("unet") != prints["unet"]
    assert other.fingerprint("text_encoder") != prints["text_encoder"]
    assert other.fingerprint("vae") == prints["vae"]


def test_a_file_is_hashed_once_until_it_changes(tmp_path, ctx):
    hashed = []

    def progress(label, total):
        hashed.append(label)
        return ctx.progress(label, total)

    file, memo = tmp_path / "w.bin", tmp_path / "memo.json"
    file.write_bytes(b"one")
    assert file_hash(file, memo, progress) == hashlib.sha256(b"one").hexdigest()
    assert file_hash(file, memo, progress) == hashlib.sha256(b"one").hexdigest()
    assert len(hashed) == 1
    file.write_bytes(b"another")
    assert file_hash(file, memo, progress) == hashlib.sha256(b"another").hexdigest()
    memo.write_text("{damaged")
    assert file_hash(file, memo, progress) == hashlib.sha256(b"another").hexdigest()
    assert len(hashed) == 3


def test_hashes_that_cannot_be_remembered_are_made_again(tmp_path, ctx):
    (tmp_path / "w.bin").write_bytes(b"one")
    (tmp_path / "file").touch()
    memo = tmp_path / "file" / "memo.json"  # no folder can be there
    for _ in range(2):
        found = file_hash(tmp_path / "w.bin", memo, ctx.progress)
        assert found == hashlib.sha256(b"one").hexdigest()


def test_a_file_in_the_place_of_another_of_equal_size_and_time_is_hashed_anew(tmp_path, ctx):
    file, memo, other = tmp_path / "w.bin", tmp_path / "memo.json", tmp_path / "other.bin"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    file_hash(file, memo, ctx.progress)
    shutil.copystat(file, other)
    other.replace(file)  # as `rsync -t` and `cp -p` do
    assert file_hash(file, memo, ctx.progress) == hashlib.sha256(b"two").hexdigest()
    times = file.stat()
    file.write_bytes(b"six")  # in place: the same inode
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(file, memo, ctx.progress) == hashlib.sha256(b"six").hexdigest()


def test_tiny_has_the_same_bits_everywhere(tiny_model):
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for file in sorted(tiny_model.rglob("*.safetensors")):
        for name, array in sorted(load_file(file).items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == "360fba4ce2f8101f"


def test_another_vae_is_taken_from_a_folder(tiny_model, tmp_path, ctx):
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model / "vae", tmp_path / "vae"))
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 2 for k, v in load_file(file).items()}, file)
    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    for vae in (folder, file):  # a diffusers VAE folder, and its file alone
        model = StableDiffusion(source=str(tiny_model), vae=str(vae)).open(ctx)
        weight = model.parts["vae"].encoder.conv_in.weight
        assert torch.equal(weight, base.parts["vae"].encoder.conv_in.weight * 2)
        assert model.fingerprint("vae") != base.fingerprint("vae")
        assert model.fingerprint("unet") == base.fingerprint("unet")


def test_a_weight_that_is_missing_is_an_error_not_a_random_number(tiny_model, tmp_path, ctx):
    from safetensors.torch import load_file, save_file

    from dreambooth.errors import RunError

    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{stem}.safetensors"
        state = load_file(file)
        state.pop(sorted(state)[0])
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(RunError, match=f"lacks 1 weights of {part}"):
            StableDiffusion(source=str(folder)).open(ctx).parts[part]


def test_hub_model_without_weights_still_has_a_fingerprint_for_the_plan(
    tiny_model, tmp_path, make_ctx, ctx
):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    model = StableDiffusion(source=str(folder)).open(make_ctx(device="meta"))
    whole = model.fingerprint("vae")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert model.fingerprint("vae") != whole
    with pytest.raises(JobError, match="holds no weights"):
        StableDiffusion(source=str(folder)).open(ctx)
