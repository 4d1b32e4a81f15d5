"""PEFT's own folders: every method, read back by PEFT itself into plain parts."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from dreambooth.jobs.checks import preflight
from dreambooth_plugins.exporter import Peft
from dreambooth_plugins.freezing import Adapter, Pivotal
from dreambooth_plugins.model import StableDiffusion
from learning import digest, shake, tensors

BOTH = ["unet", "text_encoder"]
AT = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
TEXT = "base_model.model.encoder.layers.1.self_attn.k_proj"
METHODS = {
    "lora": ({"kind": "lora", "rank": 4, "alpha": 1}, ["lora_A.weight", "lora_B.weight"]),
    "lora of mixed ranks": (
        {"kind": "lora", "rank": 2, "alpha": 3, "ranks": {"attn2.*": 4}, "rank_stabilized": True},
        ["lora_A.weight", "lora_B.weight"],
    ),
    "dora": (
        {"kind": "dora", "rank": 4},
        ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"],
    ),
    "loha": ({"kind": "loha", "rank": 4}, ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]),
    "lokr": (
        {"kind": "lokr", "rank": 2, "factor": 4}, ["lokr_w1", "lokr_w2_a", "lokr_w2_b"]
    ),
    "oft": ({"kind": "oft", "block_size": 8}, ["oft_R.weight"]),
    "oft, shared and constrained": (
        {"kind": "oft", "block_size": 4, "share_blocks": True, "constrained": 1e-2},
        ["oft_R.weight"],
    ),
    "boft": ({"kind": "boft", "block_size": 8}, ["boft_R", "boft_s"]),
}  # fmt: skip
"""Options, and the names PEFT gives a module's tensors in its files."""


@pytest.fixture
def trained(ctx, make_ctx, small_job):
    """Make an adapter that has moved: `trained(Adapter(...))` -> model, artifact, context."""

    def make(policy, job=None, **options):
        inside = make_ctx(**options) if options else ctx
        inside.job = job
        model = StableDiffusion(source="builtin:tiny").open(inside)
        policy.prepare(model, inside)
        parameters = policy.trainable(model)
        shake(parameters, 0.02)
        return model, policy.artifact(model, {n: p.detach() for n, p in parameters.items()}), inside

    return make


def export(exporter, made, dest):
    model, artifact, ctx = made
    dest.mkdir(exist_ok=True)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_folder_that_peft_opens(trained, tmp_path, tiny_model, method):
    options, roles = METHODS[method]
    made = trained(Adapter(method=options, train=BOTH))
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(Peft(), made, tmp_path / "out")
    assert check.ok, check.message
    assert "opened with PEFT" in check.message
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["latents"] <= 1e-4
    if "constrained" not in method:  # PEFT projects those in place in every forward pass
        assert {n: digest(t) for n, t in tensors(made[0]).items()} == before
    found = {part: load_file(tmp_path / f"out/{part}/adapter_model.safetensors") for part in BOTH}
    for part, at in (("unet", AT), ("text_encoder", TEXT)):
        inside = sorted(n.removeprefix(f"{at}.") for n in found[part] if n.startswith(f"{at}."))
        assert inside == sorted(roles)
    # By hand, into parts that know nothing of the trainer.
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = PeftModel.from_pretrained(
            UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet"),
            tmp_path / "out/unet",
        )
        words = PeftModel.from_pretrained(
            CLIPTextModel.from_pretrained(tiny_model / "text_encoder"),
            tmp_path / "out/text_encoder",
        )
    ids = torch.randint(0, 100, (2, 77))
    live = made[0].parts
    with torch.no_grad():
        torch.testing.assert_close(
            unet(sample, 7, text).sample, live["unet"](sample, 7, text).sample, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            words(ids).last_hidden_state, live["text_encoder"](ids).last_hidden_state,
            rtol=0, atol=1e-5,
        )  # fmt: skip


def test_its_configuration_is_peft_s_and_names_no_place_of_this_machine(trained, tmp_path):
    made = trained(Adapter(method={"kind": "oft", "block_size": 8}))
    export(Peft(), made, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["unet"]
    text = (tmp_path / "out/unet/adapter_config.json").read_text()
    config = json.loads(text)
    assert config["peft_type"] == "OFT"
    assert config["oft_block_size"] == 8
    assert config["inference_mode"]
    assert len(config["target_modules"]) == 32
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] is None
    assert str(tmp_path) not in text


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_compared_and_reported(trained, tmp_path, dtype):
    made = trained(Adapter(method={"kind": "boft", "block_size": 8}))
    check = export(Peft(dtype=dtype), made, tmp_path / "out")
    assert check.ok, check.message
    assert 1e-6 < check.figures["denoiser"] < 0.05


def test_a_half_precision_base_is_no_reason_for_a_rounded_file(trained, tmp_path):
    made = trained(Adapter(method={"kind": "oft", "block_size": 8}), dtype=torch.bfloat16)
    check = export(Peft(), made, tmp_path / "out")
    assert check.ok, check.message
    assert max(check.figures[n] for n in ("text", "denoiser")) < 1e-5


@pytest.mark.parametrize("change", ["tensor", "option", "missing"])
def test_a_changed_folder_is_seen(trained, tmp_path, change):
    made = trained(Adapter(method={"kind": "oft", "block_size": 8}))
    assert export(Peft(), made, tmp_path / "out").ok
    file = tmp_path / "out/unet/adapter_model.safetensors"
    found, config = load_file(file), tmp_path / "out/unet/adapter_config.json"
    if change == "tensor":
        save_file(found | {f"{AT}.oft_R.weight": found[f"{AT}.oft_R.weight"] + 1e-3}, file)
    elif change == "missing":
        save_file({n: t for n, t in found.items() if not n.startswith(AT)}, file)
    else:
        changed = json.loads(config.read_text()) | {"oft_block_size": 4}
        config.write_text(json.dumps(changed))
    check = Peft().verify(made[1], made[0], tmp_path / "out", made[2])
    assert not check.ok
    said = "PEFT cannot open" if change == "option" else "1 of 32 tensors differ"
    assert said in check.message


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_training_goes_on_from_it(trained, tmp_path, ctx, method):
    made = trained(Adapter(method=METHODS[method][0], train=BOTH))
    export(Peft(), made, tmp_path / "out")
    again = StableDiffusion(source="builtin:tiny").open(ctx)
    policy = Adapter(method=method, train=BOTH).at(tmp_path / "out")
    policy.prepare(again, ctx)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    one, two = (m.parts["unet"].get_submodule(name) for m in (made[0], again))
    torch.testing.assert_close(one.get_delta_weight("default"), two.get_delta_weight("default"))


def test_what_no_file_is_read_of_begins_nowhere(tmp_path):
    assert Adapter(method={"kind": "oft", "block_size": 8}).at(tmp_path) is None


def test_a_word_lies_beside_the_folders(trained, tmp_path, small_job):
    job = small_job(subject={"identifier": "<my-dog>", "class_noun": "dog"})
    made = trained(Pivotal(vectors=2, method={"kind": "boft", "block_size": 8}), job=job)
    check = export(Peft(), made, tmp_path / "out")
    assert check.ok, check.message
    assert (tmp_path / "out/learned_embeds.safetensors").is_file()
    assert not [
        n for n in load_file(tmp_path / "out/unet/adapter_model.safetensors") if "rows" in n
    ]


@pytest.mark.parametrize("method", ["oft", "boft"])
def test_validate_takes_it_for_methods_that_nothing_else_holds(small_job, method):
    freezing = {"kind": "adapter", "method": {"kind": method, "block_size": 8}}
    assert preflight(small_job(freezing=freezing, exports=["peft"])) == []
