"""Adapter files: literal names and alphas, what other programs read, what a check must see."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import automatic_exporters
from dreambooth_plugins.exporter import Kohya, Lora, Merged
from dreambooth_plugins.formats.lora import kohya, low_rank
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.model import StableDiffusion
from learning import digest, shake, tensors

BOTH = ["unet", "text_encoder"]
LORA_FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def trained(ctx, make_ctx):
    """Make an adapter that has moved: `trained(Adapter(...))` -> model, artifact, context."""

    def make(policy, **options):
        inside = make_ctx(**options) if options else ctx
        model = StableDiffusion(source="builtin:tiny").open(inside)
        policy.prepare(model, inside)
        parameters = policy.trainable(model)
        shake(parameters)
        return model, policy.artifact(model, {n: p.detach() for n, p in parameters.items()}), inside

    return make


def export(exporter, trained, dest):
    model, artifact, ctx = trained
    dest.mkdir(exist_ok=True)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def blocks():
    """Every transformer block of the tiny UNet, in kohya's spelling."""
    return (
        "down_blocks_0_attentions_0",
        "mid_block_attentions_0",
        "up_blocks_1_attentions_0",
        "up_blocks_1_attentions_1",
    )


KOHYA_NAMES = [
    *(
        f"lora_unet_{block}_transformer_blocks_0_{attention}_{projection}"
        for block in blocks()
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out_0")
    ),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_k_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_v_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
    "lora_te_text_model_encoder_layers_1_self_attn_k_proj",
    "lora_te_text_model_encoder_layers_1_self_attn_v_proj",
    "lora_te_text_model_encoder_layers_1_self_attn_out_proj",
]
MLP_NAMES = [
    *(
        f"lora_unet_{block}_transformer_blocks_0_ff_net_{layer}"
        for block in blocks()
        for layer in ("0_proj", "2")
    ),
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te_text_model_encoder_layers_0_mlp_fc2",
    "lora_te_text_model_encoder_layers_1_mlp_fc1",
    "lora_te_text_model_encoder_layers_1_mlp_fc2",
]


@pytest.mark.parametrize(("rank", "alpha"), [(4, 1), (8, 16)])
@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
def test_kohyas_names_and_alphas_literally(trained, tmp_path, rank, alpha, targets):
    method = {"kind": "lora", "rank": rank, "alpha": alpha}
    made = trained(Adapter(method=method, train=BOTH, targets=targets))
    assert export(Kohya(), made, tmp_path / "out").ok
    [path] = (tmp_path / "out").iterdir()
    assert path.name == "adapter.safetensors"
    names = KOHYA_NAMES + (MLP_NAMES if targets == "attention+mlp" else [])
    found = load_file(path)
    assert set(found) == {
        f"{name}.{what}"
        for name in names
        for what in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    artifact = made[1].tensors
    for name in names:
        assert found[f"{name}.alpha"].shape == ()
        assert float(found[f"{name}.alpha"]) == alpha
        assert found[f"{name}.lora_down.weight"].shape[0] == rank
        assert found[f"{name}.lora_up.weight"].shape[1] == rank
    a = artifact["text_encoder.encoder.layers.1.self_attn.v_proj.lora_A.default.weight"]
    b = artifact["text_encoder.encoder.layers.1.self_attn.v_proj.lora_B.default.weight"]
    at = "lora_te_text_model_encoder_layers_1_self_attn_v_proj"
    assert torch.equal(found[f"{at}.lora_down.weight"], a)
    assert torch.equal(found[f"{at}.lora_up.weight"], b)
    about = metadata(path)
    assert about["ss_network_dim"] == str(rank)
    assert about["ss_network_alpha"] == str(alpha)
    assert about["ss_network_module"] == "networks.lora"


def test_kohyas_names_of_convolutions_and_other_layers(trained, tmp_path):
    made = trained(Adapter(targets=["conv", "time_emb*", "time_embedding.*"]))
    assert export(Kohya(), made, tmp_path / "out").ok
    found = {n.split(".")[0] for n in load_file(tmp_path / "out/adapter.safetensors")}
    assert found >= {
        "lora_unet_conv_in",
        "lora_unet_conv_out",
        "lora_unet_time_embedding_linear_1",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_unet_up_blocks_0_upsamplers_0_conv",
        "lora_unet_up_blocks_0_resnets_0_conv_shortcut",
        "lora_unet_mid_block_attentions_0_proj_in",
    }


def test_kohyas_metadata_tells_of_the_run(trained, tmp_path, small_job):
    model, artifact, ctx = trained(Adapter(lr={"unet": 2e-4}))
    ctx.job = small_job(name="my-dog", freezing=Adapter(lr={"unet": 2e-4}))
    told = SimpleNamespace(
        tensors=artifact.tensors, metadata={**artifact.metadata, "steps": 123, "images": 5}
    )
    Kohya().write(told, model, tmp_path, ctx, {})
    about = metadata(tmp_path / "my-dog.safetensors")
    assert about["ss_steps"] == "123"
    assert about["ss_sd_model_name"] == "builtin:tiny"
    assert about["ss_instance_token"] == "ohwx"
    assert about["ss_class_noun"] == "dog"
    assert about["ss_unet_lr"] == "0.0002"
    assert about["ss_num_train_images"] == "5"
    assert json.loads(about["ss_tag_frequency"]) == {"1_ohwx dog": {"ohwx dog": 5}}
    assert json.loads(about["ss_dataset_dirs"]) == {"1_ohwx dog": {"n_repeats": 1, "img_count": 5}}
    assert about["ss_zero_terminal_snr"] == "False"
    assert about["modelspec.trigger_phrase"] == "ohwx dog"
    assert about["modelspec.prediction_type"] == "epsilon"
    assert not [text for text in about.values() if str(tmp_path) in text]


def test_kohyas_tags_are_those_of_the_captions(trained, tmp_path, small_job):
    """Split at commas, stripped, in lower case, counted a picture: `set_tag_frequency` there."""
    model, artifact, ctx = trained(Adapter())
    ctx.job = small_job(name="my-dog")
    captions = {"a photo of ohwx dog, Sitting,  snow ,": 2, "snow, ohwx dog": 1, ",, ": 1}
    about = {**artifact.metadata, "steps": 1, "images": 4, "captions": captions}
    Kohya().write(replace(artifact, metadata=about), model, tmp_path, ctx, {})
    told = metadata(tmp_path / "my-dog.safetensors")
    assert told["ss_num_train_images"] == "4"
    assert json.loads(told["ss_tag_frequency"]) == {
        "1_ohwx dog": {"a photo of ohwx dog": 2, "sitting": 2, "snow": 3, "ohwx dog": 1}
    }


@pytest.mark.parametrize(
    ("family", "prediction", "zero", "version", "v2"),
    [
        ("stable-diffusion-1", "epsilon", False, "sd_v1", "False"),
        ("stable-diffusion-1", "v_prediction", True, "sd_v1_v", "False"),
        ("stable-diffusion-2", "epsilon", False, "sd_v2", "True"),
        ("stable-diffusion-2", "v_prediction", False, "sd_v2_v", "True"),
        ("sdxl", "v_prediction", True, "sdxl_base_v1-0", "False"),
    ],
)
def test_kohyas_name_of_the_base_says_v(trained, small_job, family, prediction, zero, version, v2):
    """As `get_model_version_str_for_sd1_sd2` has it; A1111 goes by `ss_v2` and `sdxl_`."""
    model, artifact, _ = trained(Adapter())
    schedule = {**model.info.schedule, "rescale_betas_zero_snr": zero}
    info = replace(
        model.info, family=family, prediction=prediction, schedule=schedule,
        names={"kohya": version.removesuffix("_v")},
    )  # fmt: skip
    about = kohya.metadata(artifact, [], info, small_job())
    assert about["ss_base_model_version"] == version
    assert about["ss_v2"] == v2
    assert about["ss_zero_terminal_snr"] == str(zero)
    assert about["modelspec.prediction_type"] == ("v" if prediction[0] == "v" else "epsilon")


def test_other_alphas_of_kohyas_are_the_same_update(trained, tmp_path):
    method = {"kind": "lora", "rank": 4, "alpha": 1, "alphas": {"attn2.*": 2}}
    made = trained(Adapter(method=method))
    assert export(Kohya(), made, tmp_path / "out").ok
    found = load_file(tmp_path / "out/adapter.safetensors")
    assert {float(t) for n, t in found.items() if n.endswith("alpha")} == {1.0}
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    up = made[1].tensors[f"unet.{name}.lora_B.default.weight"]
    assert torch.equal(found[f"lora_unet_{name.replace('.', '_')}.lora_up.weight"], 2 * up)


def test_diffusers_layout_literally(trained, tmp_path):
    method = {"kind": "lora", "rank": 4, "alpha": 1, "ranks": {"attn2.to_k": 8}}
    policy = Adapter(method=method, train=BOTH, targets=["attn2.to_k", "to_q", "q_proj"])
    assert export(Lora(), trained(policy), tmp_path / "out").ok
    names = load_file(tmp_path / "out" / LORA_FILE)
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert names.keys() >= {
        f"{block}.attn1.to_q.lora_A.weight",
        f"{block}.attn1.to_q.lora_B.weight",
        f"{block}.attn2.to_k.lora_A.weight",
        f"{layer}.lora_linear_layer.down.weight",
        f"{layer}.lora_linear_layer.up.weight",
    }
    assert len(names) == 2 * (4 + 8 + 2)
    about = json.loads(metadata(tmp_path / "out" / LORA_FILE)["lora_adapter_metadata"])
    assert about["unet.r"] == about["text_encoder.r"] == 4
    assert about["unet.lora_alpha"] == about["text_encoder.lora_alpha"] == 1
    assert set(about["unet.rank_pattern"].values()) == {8}
    assert len(about["unet.rank_pattern"]) == 4
    assert about["text_encoder.rank_pattern"] == {}
    # Options that some versions of PEFT do not know would make the file unreadable for them.
    assert {name.split(".")[1] for name in about} == {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_dora",
        "use_rslora",
    }  # fmt: skip


POLICIES = {
    "lora, both parts": {"train": BOTH, "targets": "attention+mlp"},
    "text encoder alone": {"train": ["text_encoder"], "targets": ["fc1"]},
    "rank-stabilised, by pattern": {
        "method": {"kind": "lora", "rank": 4, "alpha": 2.5, "rank_stabilized": True,
                   "ranks": {"attn2.*": 9}},
    },
    "convolutions": {"targets": ["conv"]},
    "dora, both parts": {"method": "dora", "train": BOTH},
}  # fmt: skip


@pytest.mark.parametrize(
    ("exporter", "options"),
    [
        pytest.param(exporter, options, id=f"{exporter.kind}: {name}")
        for exporter in (Lora(), Kohya())
        for name, options in POLICIES.items()
        if not exporter.refusal(Adapter(**options))
        and not Adapter(**options).adapter_methods() & {"loha", "lokr"}
    ],
)
def test_a_file_draws_in_plain_diffusers_what_the_model_draws(trained, tmp_path, exporter, options):
    made = trained(Adapter(**options))
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(exporter, made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["text"] <= 1e-5
    assert check.figures["latents"] <= 1e-4
    assert {n: digest(t) for n, t in tensors(made[0]).items()} == before


FACTORS = {
    "loha": ({"kind": "loha", "rank": 4, "alpha": 2}, "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"),
    "loha of kernels": (
        {"kind": "loha", "rank": 4, "effective_conv": True},
        "hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
    ),
    "lokr": ({"kind": "lokr", "rank": 2, "alpha": 3, "factor": 4}, "lokr_w1 lokr_w2_a lokr_w2_b"),
    "lokr, both in two": (
        {"kind": "lokr", "rank": 1, "alpha": 3, "factor": 4, "decompose_both": True},
        "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
    ),
    "lokr, whole factors": ({"kind": "lokr", "rank": 64, "alpha": 16}, "lokr_w1 lokr_w2"),
    "lokr of kernels": (
        {"kind": "lokr", "rank": 2, "factor": 4, "effective_conv": True},
        "lokr_t2 lokr_w1 lokr_w2_a lokr_w2_b",
    ),
}
LYCORIS = {
    "loha": {
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha",
        "dora_scale",
    },
    "lokr": {
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1",
        "lokr_t2", "alpha", "dora_scale",
    },
}  # fmt: skip
"""The names that LyCORIS 4.1.3 reads (`weight_list` of its modules)."""
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV1 = "lora_unet_down_blocks_0_resnets_0_conv1"


def by_lycoris(found, at, shape):
    """The update by LyCORIS' own rules: an alpha there must be; the rank is w1's, else w2's.

    Of two whole factors the rank is 1, and alpha is taken to be that. (With a core it takes
    the rank from another side of w2_a: such files are held to the other readers' rules alone.)
    """
    w1, w1a, w1b, w2, w2a, w2b = (
        found.get(f"{at}.lokr_{n}") for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
    )
    alpha = float(found[f"{at}.alpha"])
    rank = w1a.size(1) if w1a is not None else w2a.size(1) if w2a is not None else 1
    if w1 is not None and w2 is not None:
        alpha = rank
    w1, w2 = w1a @ w1b if w1 is None else w1, w2a @ w2b if w2 is None else w2
    return torch.kron(w1, w2.contiguous()).reshape(shape) * (alpha / rank)


def test_the_names_we_read_are_those_that_are_written():
    """Every factor of LyCORIS, but for the core of a first one, which none of its modules has."""
    ours = re.compile(f"({low_rank.FACTORS})")
    named = {n for names in LYCORIS.values() for n in names} - {"alpha", "dora_scale", "lokr_t1"}
    assert all(ours.fullmatch(name) for name in named)
    assert not ours.fullmatch("lokr_t1")


def by_comfyui(found, at):
    """A module's update by the reader's rules: alpha / rank, the rank being a half's; else 1.

    ComfyUI's `weight_adapter` and A1111's `network_lokr` alike: of two ranks it is w2's.
    """

    def half(name, core):
        if f"{at}.{name}" in found:
            return found[f"{at}.{name}"]
        a, b = found[f"{at}.{name}_a"], found[f"{at}.{name}_b"]
        if f"{at}.{core}" in found:
            return torch.einsum("ij...,jr,ip->pr...", found[f"{at}.{core}"], b, a)
        return a @ b

    ranks = [found[f"{at}.{n}"].shape[0] for n in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b")
             if f"{at}.{n}" in found]  # fmt: skip
    alpha = found.get(f"{at}.alpha")
    scale = float(alpha) / ranks[0] if ranks and alpha is not None else 1.0
    if f"{at}.hada_w1_a" in found:
        return half("hada_w1", "hada_t1") * half("hada_w2", "hada_t2") * scale
    w1, w2 = half("lokr_w1", ""), half("lokr_w2", "lokr_t2").contiguous()
    return torch.kron(w1[..., None, None] if w2.dim() == 4 else w1, w2) * scale


@pytest.mark.parametrize("method", FACTORS)
def test_loha_and_lokr_are_files_that_other_programs_read(trained, tmp_path, method):
    options, roles = FACTORS[method]
    kernels = "kernels" in method
    made = trained(Adapter(method=options, targets=["conv"] if kernels else "attention"))
    check = export(Kohya(), made, tmp_path / "out")
    assert check.ok, check.message
    assert 0 <= check.figures["apart"] < 1e-5
    found = load_file(tmp_path / "out/adapter.safetensors")
    at, module = (CONV1, "down_blocks.0.resnets.0.conv1") if kernels else (
        TO_Q, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")  # fmt: skip
    inside = {n.removeprefix(f"{at}.") for n in found if n.startswith(f"{at}.")}
    assert inside == {*roles.split(), "alpha"}
    assert inside <= LYCORIS[options["kind"]]
    live = made[0].parts["unet"].get_submodule(module).get_delta_weight("default").detach()
    there = by_comfyui(found, at).reshape(live.shape)
    assert live.abs().max() > 0
    torch.testing.assert_close(there, live, rtol=1e-5, atol=1e-6 * float(live.abs().max()))
    if options["kind"] == "lokr" and not kernels:
        again = by_lycoris(found, at, live.shape)
        torch.testing.assert_close(again, live, rtol=1e-5, atol=1e-6 * float(live.abs().max()))
    about = metadata(tmp_path / "out/adapter.safetensors")
    assert about["ss_network_module"] == "lycoris.kohya"
    assert json.loads(about["ss_network_args"]) == {"algo": options["kind"]}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_a_changed_factor_is_noticed(trained, tmp_path, method, dtype):
    made = trained(Adapter(method=FACTORS[method][0]))
    exporter = Kohya(dtype=dtype)
    assert export(exporter, made, tmp_path / "out").ok
    path = tmp_path / "out/adapter.safetensors"
    found = load_file(path)
    role = "hada_w2_a" if method == "loha" else "lokr_w1"
    save_file(found | {f"{TO_Q}.{role}": found[f"{TO_Q}.{role}"] * 1.1}, path)
    assert not exporter.verify(made[1], made[0], tmp_path / "out", made[2]).ok
    save_file({n: t for n, t in found.items() if not n.startswith(TO_Q)}, path)
    assert "lacks" in exporter.verify(made[1], made[0], tmp_path / "out", made[2]).message


def test_parts_of_two_methods_are_one_file(trained, tmp_path):
    parts = {"text_encoder": {"method": {"kind": "lora", "rank": 2, "alpha": 1}}}
    made = trained(Adapter(method="loha", train=BOTH, parts=parts))
    assert export(Kohya(), made, tmp_path / "out").ok
    roles = {n.split(".", 1)[1] for n in load_file(tmp_path / "out/adapter.safetensors")}
    assert roles >= {"lora_down.weight", "lora_up.weight", "hada_w1_a", "alpha"}


@pytest.mark.parametrize("method", ["loha", "lokr", "lokr, whole factors"])
def test_a_loha_or_lokr_we_wrote_goes_on_as_it_was(trained, tmp_path, ctx, method):
    kind = FACTORS[method][0]["kind"]
    made = trained(Adapter(method=FACTORS[method][0]))
    export(Kohya(), made, tmp_path / "out")
    again = StableDiffusion(source="builtin:tiny").open(ctx)
    Adapter(method=kind, init=tmp_path / "out").prepare(again, ctx)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    one, two = (m.parts["unet"].get_submodule(name) for m in (made[0], again))
    torch.testing.assert_close(one.get_delta_weight("default"), two.get_delta_weight("default"))


METHODS = {
    "lora": {"kind": "lora", "rank": 4, "alpha": 1},
    "dora": {"kind": "dora", "rank": 4},
    "loha": {"kind": "loha", "rank": 4},
    "lokr": {"kind": "lokr", "rank": 4, "decompose_both": True, "factor": 4},
    "oft": {"kind": "oft", "block_size": 8},
    "boft": {"kind": "boft", "block_size": 8},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_folds_into_a_model_that_draws_the_same(trained, tmp_path, method):
    made = trained(Adapter(method=method, train=BOTH))
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(Merged(), made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["tensors"] == 40
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["latents"] <= 1e-3
    assert {n: digest(t) for n, t in tensors(made[0]).items()} == before
    base = load_file(made[0].source.weight_files("unet")[0])
    folded = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    moved = {n for n, t in folded.items() if not torch.equal(t, base[n])}
    assert {n.rsplit(".", 1)[0].rsplit(".", 1)[-1] for n in moved} <= {"to_q", "to_k", "to_v", "0"}
    assert len(moved) == 32


@pytest.mark.parametrize("exporter", [Lora, Kohya, Merged])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_files_are_compared_and_reported(trained, tmp_path, exporter, dtype):
    check = export(exporter(dtype=dtype), trained(Adapter(train=BOTH)), tmp_path / "out")
    assert check.ok, check.message
    assert 1e-6 < check.figures["denoiser"] < 0.05
    files = [f for f in (tmp_path / "out").rglob("*.safetensors") if "vae" not in f.parts]
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for file in files:
        kinds = {t.dtype for n, t in load_file(file).items() if not n.endswith("alpha")}
        assert kinds == {wanted}


@pytest.mark.parametrize("exporter", [Lora(), Kohya(), Merged()], ids=["lora", "kohya", "merged"])
def test_adapters_of_a_half_precision_base_are_written_whole(trained, tmp_path, exporter):
    made = trained(Adapter(train=BOTH), dtype=torch.bfloat16)
    check = export(exporter, made, tmp_path / "out")
    assert check.ok, check.message
    # As tight as for a float32 base: the file is compared, not the rounding of the run.
    assert max(check.figures[n] for n in ("text", "denoiser")) < 1e-5
    assert {p.dtype for p in made[0].parts["unet"].parameters()} == {torch.bfloat16, torch.float32}
    if exporter.kind == "merged":
        base = load_file(made[0].source.weight_files("unet")[0])
        folded = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
        name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        a, b = (made[1].tensors[f"unet.{name}.lora_{x}.default.weight"] for x in "AB")
        # On the source's float32 weights, not on those rounded for training.
        expected = base[f"{name}.weight"] + b @ a
        assert torch.allclose(folded[f"{name}.weight"], expected, atol=1e-7)
        assert torch.equal(folded["conv_in.weight"], base["conv_in.weight"])
    else:
        [file] = (tmp_path / "out").glob("*.safetensors")
        found = {digest(t) for t in load_file(file).values()}
        assert found >= {digest(t) for t in made[1].tensors.values()}


def tamper(path, change):
    with safe_open(path, "pt") as file:
        about = file.metadata()
    content = load_file(path)
    content, about = change(content, about) or (content, about)
    save_file(content, path, metadata=about)


def bit(content, about):
    name = sorted(n for n in content if "alpha" not in n)[3]
    content[name].view(-1)[0] += 1e-6


def gone(content, about):
    for name in [n for n in content if "mid_block" in n]:
        del content[name]


def alpha_in_metadata(content, about):
    facts = json.loads(about["lora_adapter_metadata"])
    facts["unet.lora_alpha"] *= 2
    return content, {**about, "lora_adapter_metadata": json.dumps(facts)}


def alpha_tensors(content, about):
    return {n: t * 2 if n.endswith("alpha") else t for n, t in content.items()}, about


def swapped(content, about):
    q, k = (next(n for n in sorted(content) if f"{x}.lora_A" in n or f"{x}.lora_down" in n)
            for x in ("to_q", "to_k"))  # fmt: skip
    content[q], content[k] = content[k], content[q]


@pytest.mark.parametrize(
    ("exporter", "change"),
    [
        (Lora(), bit), (Lora(), gone), (Lora(), alpha_in_metadata), (Lora(), swapped),
        (Kohya(), bit), (Kohya(), gone), (Kohya(), alpha_tensors), (Kohya(), swapped),
    ],
)  # fmt: skip
def test_a_changed_file_is_seen(trained, tmp_path, exporter, change):
    made = trained(Adapter(method={"kind": "lora", "rank": 4, "alpha": 1}))
    model, artifact, ctx = made
    assert export(exporter, made, tmp_path).ok
    [file] = tmp_path.glob("*.safetensors")
    tamper(file, change)
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert "adapters differ in the file" in check.message


def test_a_changed_merged_folder_is_seen(trained, tmp_path):
    made = trained(Adapter())
    model, artifact, ctx = made
    assert export(Merged(), made, tmp_path).ok
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    tamper(file, lambda c, a: ({**c, "conv_in.bias": c["conv_in.bias"] + 1e-2}, a))
    check = Merged().verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert "more than is allowed: denoiser" in check.message


def test_an_average_is_what_is_written_and_compared(trained, tmp_path):
    from dataclasses import replace

    model, artifact, ctx = trained(Adapter())
    live = {n: digest(t) for n, t in tensors(model).items()}
    average = replace(artifact, tensors={n: t * 0.5 for n, t in artifact.tensors.items()})
    for exporter in (Lora(), Kohya(), Merged()):
        assert export(exporter, (model, average, ctx), tmp_path / exporter.kind).ok
        assert not exporter.verify(artifact, model, tmp_path / exporter.kind, ctx).ok
    assert {n: digest(t) for n, t in tensors(model).items()} == live


def test_equal_adapters_give_equal_bytes(trained, tmp_path):
    for exporter in (Lora(), Kohya()):
        both = []
        for name in ("one", "two"):
            made = trained(Adapter(train=BOTH))
            export(exporter, made, tmp_path / name)
            [file] = (tmp_path / name).glob("*.safetensors")
            both.append(file.read_bytes())
            file.unlink()
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("exporter", "method", "reason"),
    [
        ("kohya", "dora", "the axis of DoRA's magnitudes"),
        ("kohya", {"kind": "oft", "block_size": 8}, "OFT turns the weights"),
        ("kohya", "boft", "BOFT turns the weights"),
        ("lora", "loha", "multiplied elementwise"),
        ("lora", "lokr", "Kronecker product"),
        ("lora", {"kind": "oft", "block_size": 8}, "OFT turns the weights"),
        ("lora", "boft", "BOFT turns the weights"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_validate(small_job, exporter, method, reason):
    job = small_job(freezing={"kind": "adapter", "method": method}, exports=["merged", exporter])
    [problem] = preflight(job)
    assert problem.at == ("exports", 1)
    assert reason in problem.message
    assert "merged" in problem.hint


def test_a_part_with_another_method_is_refused_too(small_job):
    freezing = {"kind": "adapter", "train": BOTH, "parts": {"text_encoder": {"method": "lokr"}}}
    [problem] = preflight(small_job(freezing=freezing, exports=["lora"]))
    assert "Kronecker" in problem.message


def test_a_format_that_takes_no_adapters_is_named(small_job):
    job = small_job(freezing="adapter", exports=["lora", "diffusers"])
    [problem] = preflight(job)
    assert problem.at == ("exports", 1)
    assert "diffusers does not accept" in problem.message


@pytest.mark.parametrize(
    ("method", "kind"),
    [("lora", "lora"), ("dora", "lora"), ("lokr", "merged"), ("boft", "merged")],
)
def test_automatic_exports_fit_the_method(small_job, method, kind):
    job = small_job(freezing={"kind": "adapter", "method": method})
    assert [e.kind for e in automatic_exporters(job)] == [kind]
    assert preflight(job) == []
