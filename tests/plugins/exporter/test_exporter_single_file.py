"""The `single_file` exporter: what it writes opens with `from_single_file` and draws the same."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.interfaces import Artifact
from dreambooth.jobs.checks import preflight
from dreambooth_plugins.exporter import SingleFile
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.model import StableDiffusion
from learning import digest, shake, tensors

BOTH = ["unet", "text_encoder"]
UNET, VAE = "model.diffusion_model", "first_stage_model"


@pytest.fixture
def trained(make_ctx, small_job):
    """Make a model that has moved, and what it trained: `trained(policy=Adapter())`."""

    def make(source="builtin:tiny", policy=None, **options):
        ctx = make_ctx(job=small_job(), **options)
        model = StableDiffusion(source=source).open(ctx)
        if policy is not None:
            policy.prepare(model, ctx)
            moving = dict(policy.trainable(model))
        else:
            moving = dict(model.named_parameters(*BOTH))
            for p in moving.values():
                p.data = p.data.float()
        shake(moving, 0.05 if policy else 0.01)
        weights = {n: p.detach() for n, p in moving.items()}
        artifact = policy.artifact(model, weights) if policy else Artifact("weights", weights)
        return model, artifact, ctx

    return make


def export(made, dest, **options):
    model, artifact, ctx = made
    dest.mkdir(exist_ok=True)
    exporter = SingleFile(**options)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


@pytest.mark.parametrize("source", ["builtin:tiny", "builtin:emoji-64"])
def test_a_file_opens_elsewhere_with_every_weight_and_draws_the_same(trained, tmp_path, source):
    made = trained(source)
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(made, tmp_path / "out")
    assert check.ok, check.message
    assert "from_single_file" in check.message
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["latents"] <= 1e-4
    parts = [dict(made[0].named_parameters(part)) for part in made[0].parts]
    assert check.figures["tensors"] == sum(map(len, parts))
    assert {n: digest(t) for n, t in tensors(made[0]).items() if not n.startswith("vae")} == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config", "small.safetensors"]
    assert not list((tmp_path / "out/config").rglob("*.safetensors"))
    # The picture too: the VAE is another part of the file.
    pipe = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "out/small.safetensors"), config=str(tmp_path / "out/config")
    )
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        assert (theirs - made[0].decode(latents)).abs().max() < 1e-5


def test_an_adapter_is_folded_in(trained, tmp_path):
    made = trained(policy=Adapter(train=BOTH))
    check = export(made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["latents"] <= 1e-3
    file = load_file(tmp_path / "out/small.safetensors")
    base = load_file(made[0].source.weight_files("unet")[0])
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (made[1].tensors[f"unet.{name}.lora_{x}.default.weight"] for x in "AB")
    there = file[f"{UNET}.middle_block.1.transformer_blocks.0.attn1.to_q.weight"]
    assert torch.allclose(there, base[f"{name}.weight"] + b @ a, atol=1e-6)
    assert not torch.equal(there, base[f"{name}.weight"])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_compared_and_reported(trained, tmp_path, dtype):
    check = export(trained(), tmp_path / "out", dtype=dtype)
    assert check.ok, check.message
    assert 1e-5 < check.figures["denoiser"] < 0.1
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {t.dtype for t in load_file(tmp_path / "out/small.safetensors").values()} == {wanted}


def test_a_half_precision_base_is_written_whole(trained, tmp_path):
    made = trained(policy=Adapter(), dtype=torch.bfloat16)
    check = export(made, tmp_path / "out")
    assert check.ok, check.message
    assert max(check.figures[n] for n in ("text", "denoiser")) < 1e-5
    file = load_file(tmp_path / "out/small.safetensors")
    base = load_file(made[0].source.weight_files("unet")[0])
    assert torch.equal(file[f"{UNET}.out.2.weight"], base["conv_out.weight"])


def tamper(file, change):
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    content = load_file(file)
    change(content)
    save_file(content, file, metadata=about)


def swap(content):
    q, k = (f"{UNET}.middle_block.1.transformer_blocks.0.attn1.to_{x}.weight" for x in "qk")
    content[q], content[k] = content[k], content[q]


def bit(content):
    content[f"{UNET}.out.2.bias"][0] += 1e-6


def vae(content):
    content[f"{VAE}.decoder.conv_in.bias"][0] += 1e-6


def text(content):
    content["cond_stage_model.transformer.text_model.final_layer_norm.bias"][0] += 1e-6


@pytest.mark.parametrize("change", [swap, bit, vae, text])
def test_a_changed_file_is_seen(trained, tmp_path, change):
    model, artifact, ctx = made = trained()
    assert export(made, tmp_path / "out").ok
    tamper(tmp_path / "out/small.safetensors", change)
    check = SingleFile().verify(artifact, model, tmp_path / "out", ctx)
    assert not check.ok
    assert "weights differ in the file" in check.message


def test_a_missing_weight_is_seen(trained, tmp_path):
    model, artifact, ctx = made = trained()
    assert export(made, tmp_path / "out").ok
    tamper(tmp_path / "out/small.safetensors", lambda c: c.pop(f"{UNET}.out.2.bias"))
    assert not SingleFile().verify(artifact, model, tmp_path / "out", ctx).ok


def test_a_configuration_that_does_not_fit_is_seen(trained, tmp_path):
    model, artifact, ctx = made = trained()
    assert export(made, tmp_path / "out").ok
    file = tmp_path / "out/config/unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "freq_shift": 1}))
    check = SingleFile().verify(artifact, model, tmp_path / "out", ctx)
    assert not check.ok
    assert "more than is allowed" in check.message


def test_the_trainer_takes_the_file_as_a_base(trained, tmp_path, ctx):
    _model, artifact, _ = made = trained()
    export(made, tmp_path / "out")
    again = StableDiffusion(
        source=str(tmp_path / "out/small.safetensors"), config=str(tmp_path / "out/config")
    ).open(ctx)
    for name, tensor in again.named_parameters(*BOTH):
        assert torch.equal(tensor, artifact.tensors[name]), name


def test_equal_models_give_equal_bytes(trained, tmp_path):
    for name in ("one", "two"):
        export(trained(), tmp_path / name)
    one, two = ((tmp_path / n / "small.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_its_header_says_what_it_is(trained, tmp_path):
    export(trained(), tmp_path / "out")
    with safe_open(tmp_path / "out/small.safetensors", "pt") as file:
        about = file.metadata()
    assert about["modelspec.title"] == "small"
    assert about["modelspec.prediction_type"] == "epsilon"
    assert about["modelspec.trigger_phrase"] == "ohwx dog"
    raw = (tmp_path / "out/small.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == about
    assert list(header["__metadata__"]) == sorted(about)


def test_validate_takes_a_word_which_lies_beside(small_job):
    subject = {"identifier": "<my-dog>", "class_noun": "dog"}
    assert preflight(small_job(freezing="pivotal", subject=subject, exports=["single_file"])) == []


def test_validate_refuses_a_model_the_layout_cannot_express(small_job, tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / "unet/config.json"
    unequal = {**json.loads(file.read_text()), "layers_per_block": [1, 2]}
    file.write_text(json.dumps(unequal))
    job = small_job(model={"source": str(folder)}, exports=["single_file"])
    [problem] = preflight(job)
    assert "differ in their number of layers" in problem.message
    assert "diffusers' layout" in problem.hint
