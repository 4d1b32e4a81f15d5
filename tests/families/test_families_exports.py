"""Files of each family: every export read back; SDXL's literal names, and imports of the same."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from dreambooth.files.headers import read_header
from dreambooth_plugins.exporter import Diffusers, Embedding, Kohya, Lora, Merged, SingleFile
from dreambooth_plugins.formats.original import families
from dreambooth_plugins.freezing import Adapter, BlockPreset, Components, Pivotal, Token
from dreambooth_plugins.model import SDXL, StableDiffusion
from learning import shake

TEXTS = ["text_encoder", "text_encoder_2"]
ALL = ["unet", *TEXTS]


MODELS = {
    "sd1": StableDiffusion(source="builtin:tiny"),
    "sd2": StableDiffusion(source="builtin:tiny-sd2"),
    "sdxl": SDXL(source="builtin:tiny-sdxl"),
}


@pytest.fixture
def trained(ctx, small_job):
    """Make something that has moved: `trained(Adapter(...))` -> model, artifact, context."""

    def make(policy, family="sdxl"):
        model = MODELS[family].open(ctx)
        ctx.job = small_job(
            model=MODELS[family],
            subject={"identifier": "<zyx>", "class_noun": "dog"},
            freezing=policy,
        )
        policy = ctx.job.freezing
        policy.prepare(model, ctx)
        parameters = policy.trainable(model)
        shake(parameters)
        return model, policy.artifact(model, {n: p.detach() for n, p in parameters.items()}), ctx

    return make


def export(exporter, trained, dest):
    model, artifact, ctx = trained
    dest.mkdir(exist_ok=True)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


def names(folder):
    [path] = [p for p in folder.glob("*.safetensors") if p.name != "learned_embeds.safetensors"]
    with safe_open(path, "pt") as file:
        return set(file.keys()), file.metadata()


WHOLE = ["denoiser", "text_encoders"]
CASES = [
    ("diffusers", Diffusers(), Components(train=WHOLE)),
    ("merged", Merged(), Adapter(train=WHOLE)),
    ("lora", Lora(), Adapter(train=WHOLE)),
    ("kohya", Kohya(), Adapter(train=WHOLE)),
    ("single_file", SingleFile(), Adapter(train=WHOLE)),
    ("single_file-full", SingleFile(), Components(train=WHOLE)),
    ("embedding", Embedding(), Token(vectors=2)),
    ("pivotal-merged", Merged(), Pivotal(train=WHOLE)),
]
MORE = [
    ("kohya-linear", Kohya(), Adapter(train=WHOLE, targets="all_linear")),
    ("pivotal-kohya", Kohya(), Pivotal(train=["unet"], vectors=2)),
    ("blocks", Lora(), BlockPreset(blocks=["content", "style"])),
]


@pytest.mark.parametrize(
    ("family", "exporter", "policy"),
    [
        *(
            pytest.param(family, exporter, policy, id=f"{family}-{name}")
            for family in ("sd2", "sdxl")  # of SD 1.x in the exporters' own tests
            for name, exporter, policy in CASES
        ),
        *(pytest.param("sdxl", exporter, policy, id=f"sdxl-{n}") for n, exporter, policy in MORE),
    ],
)
def test_every_export_is_read_back_by_diffusers(trained, tmp_path, family, exporter, policy):
    check = export(exporter, trained(policy, family), tmp_path / "out")
    assert check.ok, check.message


def test_kohyas_names_literally(trained, tmp_path):
    """sd-scripts trains SDXL in Stability's UNet; CLIP-L is te1, bigG te2."""
    export(Kohya(), trained(Adapter(train=ALL, targets="attention+mlp")), tmp_path / "out")
    found, metadata = names(tmp_path / "out")
    modules = {name.split(".", 1)[0] for name in found}
    unet = set()
    blocks = [
        ("input_blocks_3_1", 1), ("input_blocks_5_1", 2), ("middle_block_1", 2),
        ("output_blocks_0_1", 2), ("output_blocks_1_1", 2),
        ("output_blocks_2_1", 1), ("output_blocks_3_1", 1),
    ]  # fmt: skip
    for block, depth in blocks:
        for i in range(depth):
            at = f"lora_unet_{block}_transformer_blocks_{i}"
            unet |= {
                f"{at}_{attention}_{projection}"
                for attention in ("attn1", "attn2")
                for projection in ("to_q", "to_k", "to_v", "to_out_0")
            }
            unet |= {f"{at}_ff_net_0_proj", f"{at}_ff_net_2"}
    layers = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj")
    texts = {
        f"lora_{te}_text_model_encoder_layers_{i}_{layer}"
        for te in ("te1", "te2")
        for i in range(3)
        for layer in (*layers, "mlp_fc1", "mlp_fc2")
    }
    assert modules == unet | texts
    assert {n.split(".", 1)[1] for n in found} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert metadata["ss_v2"] == "False"


def test_diffusers_names_literally(trained, tmp_path):
    export(
        Lora(),
        trained(Adapter(train=ALL, targets=["attn2.to_q", "layers.0.*.q_proj"])),
        tmp_path / "o",
    )
    found, _ = names(tmp_path / "o")
    at = "encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    assert {n for n in found if n.startswith("text")} == {
        f"{part}.text_model.{at}.{role}.weight" for part in TEXTS for role in ("down", "up")
    }
    block = "up_blocks.0.attentions.0.transformer_blocks.1.attn2.to_q"
    assert f"unet.{block}.lora_A.weight" in found


def test_the_single_files_names_literally(trained, tmp_path):
    export(SingleFile(), trained(Components(train=["unet"])), tmp_path / "out")
    found, _ = names(tmp_path / "out")
    unet, first, second = (
        "model.diffusion_model.",
        "conditioner.embedders.0.transformer.text_model.",
        "conditioner.embedders.1.model.",
    )
    wanted = {
        f"{unet}label_emb.0.0.weight", f"{unet}label_emb.0.2.bias", f"{unet}time_embed.0.weight",
        f"{unet}input_blocks.0.0.weight", f"{unet}input_blocks.1.0.in_layers.2.weight",
        f"{unet}input_blocks.2.0.op.weight",
        f"{unet}input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
        f"{unet}middle_block.1.transformer_blocks.1.ff.net.0.proj.weight",
        f"{unet}output_blocks.1.2.conv.weight", f"{unet}output_blocks.3.2.conv.weight",
        f"{unet}output_blocks.5.0.skip_connection.weight", f"{unet}out.2.weight",
        f"{first}embeddings.token_embedding.weight", f"{first}final_layer_norm.weight",
        f"{second}token_embedding.weight", f"{second}positional_embedding",
        f"{second}text_projection", f"{second}ln_final.weight",
        f"{second}transformer.resblocks.0.attn.in_proj_weight",
        f"{second}transformer.resblocks.2.mlp.c_proj.bias",
        "first_stage_model.decoder.up.0.block.0.conv1.weight",
    }  # fmt: skip
    assert wanted <= found, sorted(wanted - found)
    assert {n.split(".", 1)[0] for n in found} == {"model", "conditioner", "first_stage_model"}


def test_a_learned_word_is_clip_l_and_clip_g(trained, tmp_path):
    export(Embedding(), trained(Token(vectors=2)), tmp_path / "out")
    for file in ("learned_embeds.safetensors", "embeddings/zyx.safetensors"):
        with safe_open(tmp_path / "out" / file, "pt") as rows:
            shapes = {n: tuple(rows.get_tensor(n).shape) for n in rows.keys()}
        assert shapes == {"clip_l": (2, 32), "clip_g": (2, 48)}


@pytest.mark.parametrize("exporter", [Lora(), Kohya()], ids=["lora", "kohya"])
def test_an_adapter_goes_on_from_its_file(trained, tmp_path, ctx, exporter):
    _, artifact, _ = first = trained(Adapter(train=ALL, targets="attention+mlp"))
    export(exporter, first, tmp_path / "out")
    again = SDXL(source="builtin:tiny-sdxl").open(ctx)
    policy = Adapter(train=ALL, init=tmp_path / "out")
    policy.prepare(again, ctx)
    back = policy.artifact(again, {n: p.detach() for n, p in policy.trainable(again).items()})
    assert back.tensors.keys() == artifact.tensors.keys()
    for name, tensor in artifact.tensors.items():
        torch.testing.assert_close(back.tensors[name], tensor, rtol=0, atol=0)


def test_a_word_goes_on_from_its_file(trained, tmp_path, ctx):
    first = trained(Token(vectors=2))
    export(Embedding(), first, tmp_path / "out")
    again = SDXL(source="builtin:tiny-sdxl").open(ctx)
    policy = Token(vectors=2, embedding=tmp_path / "out")
    policy.prepare(again, ctx)
    rows = policy.trainable(again)
    assert set(rows) == set(first[1].tensors)
    for name, tensor in first[1].tensors.items():
        torch.testing.assert_close(rows[name].detach(), tensor, rtol=0, atol=0)


def test_a_single_file_opens_as_the_model_it_was_made_of(trained, tmp_path, ctx):
    model, _, _ = first = trained(Components(train=["text_encoder_2"]))
    assert export(SingleFile(), first, tmp_path / "out").ok
    [file] = (tmp_path / "out").glob("*.safetensors")
    again = SDXL(source=str(file), config=str(tmp_path / "out" / "config")).open(ctx)
    for part in model.parts:
        held = again.parts[part].state_dict()
        for name, tensor in model.parts[part].state_dict().items():
            assert torch.equal(held[name], tensor), f"{part}.{name}"
    assert again.tokenizer_of("text_encoder_2")("hi!").input_ids == (
        model.tokenizer_of("text_encoder_2")("hi!").input_ids
    )


@pytest.mark.parametrize("zero", [False, True], ids=["v", "v, zero terminal SNR"])
def test_a_v_model_s_single_file_is_known_for_one(ctx, small_job, tmp_path, zero):
    """ComfyUI takes an SDXL file for v where it has `v_pred`, and for pure noise with `ztsnr`."""
    scheduler = {"kind": "ddpm", "zero_terminal_snr": zero}
    ctx.job = small_job(scheduler=scheduler)
    model = SDXL(source="builtin:tiny-sdxl", prediction="v_prediction").open(ctx)
    artifact = Components(train=["unet"]).artifact(model, {})
    (tmp_path / "out").mkdir()
    SingleFile().write(artifact, model, tmp_path / "out", ctx, model.info.schedule)
    check = SingleFile().verify(artifact, model, tmp_path / "out", ctx)
    assert check.ok, check.message
    [file] = (tmp_path / "out").glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        marks = {n: opened.get_tensor(n).numel() for n in opened.keys() if "." not in n}
    assert marks == {"v_pred": 0} | ({"ztsnr": 0} if zero else {})
    assert families.sdxl_config(read_header(file)) == "sdxl-v"
