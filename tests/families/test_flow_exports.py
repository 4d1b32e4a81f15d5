"""Files of the flow-matching families: literal names that other tools use, read back, imports."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_plugins.exporter import ComfyUI, Diffusers, Kohya, Lora, Merged
from dreambooth_plugins.freezing import Adapter, Components
from learning import shake


def of(*quick):
    """All families, those that are not `quick` with the slow tests."""
    marks = {name: () if name in quick else pytest.mark.slow for name in CLIPS}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in marks.items()])


CLIPS = {
    "flux": ["text_encoder"],
    "sd3": ["text_encoder", "text_encoder_2"],
    "z_image": [],
    "flux2_klein": [],
    "qwen_image": [],
}
"""Encoders that may take adapters."""
FLOW = {"scheduler": {"kind": "flow"}, "sampler": {"kind": "flow", "steps": 2}}


@pytest.fixture
def trained(ctx, small_job):
    """Make something that moved: `trained("flux", Adapter(...))` -> model, artifact, context."""

    def make(name, policy):
        model = {"kind": name, "source": str(tiny.folder(name))}
        ctx.job = small_job(model=model, freezing=policy, **FLOW)
        policy, opened = ctx.job.freezing, ctx.job.model.open(ctx)
        policy.prepare(opened, ctx)
        parameters = policy.trainable(opened)
        shake(parameters)
        weights = {n: p.detach() for n, p in parameters.items()}
        return opened, policy.artifact(opened, weights), ctx

    return make


def export(exporter, trained, dest):
    model, artifact, ctx = trained
    dest.mkdir(exist_ok=True)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


def names(folder):
    [path] = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return set(file.keys()), file.metadata()


@of("qwen_image")
@pytest.mark.parametrize(
    ("exporter", "policy"),
    [
        (Diffusers(), Components(train=["transformer"])),
        (Merged(), Adapter(train=["transformer"], targets="attention+mlp")),
    ],
    ids=["diffusers", "merged"],
)
def test_whole_models_are_read_back_by_diffusers(trained, tmp_path, name, exporter, policy):
    check = export(exporter, trained(name, policy), tmp_path / "out")
    assert check.ok, check.message


def base(roots, leaves, roles=("lora_A.weight", "lora_B.weight")):
    return {f"{root}.{leaf}.{role}" for root in roots for leaf in leaves for role in roles}


OWN = ("to_q", "to_k", "to_v", "to_out.0")
BOTH = (*OWN, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LISTS = {
    ("flux", "lora"): base([f"transformer.transformer_blocks.{i}.attn" for i in (0, 1)], BOTH)
    | base([f"transformer.single_transformer_blocks.{i}.attn" for i in (0, 1)], OWN[:3]),
    ("sd3", "lora"): base([f"transformer.transformer_blocks.{i}.attn" for i in (0, 1)], BOTH)
    | base(["transformer.transformer_blocks.2.attn"], BOTH[:-1]),
    ("z_image", "lora"): base([f"transformer.layers.{i}.attention" for i in (0, 1)], OWN),
    ("flux2_klein", "lora"): base(
        [f"transformer.transformer_blocks.{i}.attn" for i in (0, 1)], BOTH
    )
    | base(
        [f"transformer.single_transformer_blocks.{i}.attn" for i in (0, 1)],
        ("to_qkv_mlp_proj", "to_out"),
    ),
    ("qwen_image", "lora"): base(
        [f"transformer.transformer_blocks.{i}.attn" for i in (0, 1)], BOTH
    ),
}
"""What diffusers' own scripts write for attention (its loaders' documentation has these names)."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), LISTS)
def test_diffusers_names_literally(trained, tmp_path, name, layout):
    export(Lora(), trained(name, Adapter(train=["transformer"])), tmp_path / "out")
    assert names(tmp_path / "out")[0] == LISTS[name, layout]


COMFY = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight", "alpha")
FLUX_MODULES = [
    *(
        f"double_blocks.{i}.{side}_{leaf}"
        for i in (0, 1)
        for side in ("img", "txt")
        for leaf in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ),
    *(f"single_blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("linear1", "linear2")),
]
SD3_MODULES = [
    *(
        f"joint_blocks.{i}.{side}_block.{leaf}"
        for i in (0, 1, 2)
        for side in ("x", "context")
        for leaf in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        if (i, side) != (2, "context") or leaf == "attn.qkv"
    ),
    *(f"joint_blocks.0.x_block.attn2.{leaf}" for leaf in ("qkv", "proj")),
]
Z_MODULES = [
    *(f"layers.{i}.attention.{leaf}" for i in (0, 1) for leaf in OWN),
    *(f"layers.{i}.feed_forward.{leaf}" for i in (0, 1) for leaf in ("w1", "w2", "w3")),
]
KLEIN_MODULES = FLUX_MODULES
QWEN_MODULES = [
    f"transformer_blocks.{i}.{leaf}"
    for i in (0, 1)
    for leaf in (
        *(f"attn.{name}" for name in BOTH),
        *(f"{side}_mlp.net.{name}" for side in ("img", "txt") for name in ("0.proj", "2")),
    )
]
MODULES = {
    "flux": FLUX_MODULES,
    "sd3": SD3_MODULES,
    "z_image": Z_MODULES,
    "flux2_klein": KLEIN_MODULES,
    "qwen_image": QWEN_MODULES,
}
"""Names of Black Forest Labs, Stability and Tongyi; ComfyUI's loader takes them behind
`diffusion_model.`, and with underscores behind `lora_unet_`."""


@of("flux")
def test_comfyuis_names_literally(trained, tmp_path, name):
    policy = Adapter(train=["transformer", *CLIPS[name]], targets="attention+mlp")
    check = export(ComfyUI(), trained(name, policy), tmp_path / "out")
    assert check.ok, check.message
    found, _ = names(tmp_path / "out")
    denoiser = {n for n in found if n.startswith("diffusion_model.")}
    assert denoiser == {f"diffusion_model.{m}.{r}" for m in MODULES[name] for r in COMFY}
    rest = {n.rsplit(".", 2)[0] for n in found - denoiser}
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    assert rest == {
        f"text_encoders.{clip}.transformer.text_model.encoder.layers.{i}.{leaf}"
        for clip in ("clip_l", "clip_g")[: len(CLIPS[name])]
        for i in (0, 1)
        for leaf in (*layers, "mlp.fc1", "mlp.fc2")
    }


@of("sd3")
def test_kohyas_names_literally(trained, tmp_path, name):
    if name == "z_image":
        pytest.skip("kohya's scripts do not train Z-Image")
    policy = Adapter(train=["transformer", *CLIPS[name]], targets="attention+mlp")
    check = export(Kohya(), trained(name, policy), tmp_path / "out")
    assert check.ok, check.message
    found, metadata = names(tmp_path / "out")
    denoiser = {n for n in found if n.startswith("lora_unet_")}
    wanted = {m.replace(".", "_") for m in MODULES[name]}
    assert denoiser == {f"lora_unet_{m}.{r}" for m in wanted for r in KOHYA}
    rest = {n.split("_text_model_")[0] for n in found - denoiser}
    assert rest == {f"lora_te{i + 1}" for i in range(len(CLIPS[name]))}
    assert metadata["ss_network_module"] == "networks.lora"


def test_a_fused_layer_is_block_diagonal(trained, tmp_path):
    """Three adapters of rank 2 become one of rank 6 whose pieces do not touch."""
    policy = Adapter(train=["transformer"], method={"kind": "lora", "rank": 2, "alpha": 1})
    model, artifact, _ = held = trained("flux", policy)
    export(ComfyUI(), held, tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.safetensors")
    tensors = load_file(path)
    at = "diffusion_model.double_blocks.1.img_attn.qkv"
    down, up = (tensors[f"{at}.{role}"] for role in COMFY)
    assert (tuple(down.shape), tuple(up.shape)) == ((6, 32), (96, 6))
    for k, piece in enumerate(("to_q", "to_k", "to_v")):
        own = up[32 * k : 32 * k + 32]
        assert own[:, [c for c in range(6) if c // 2 != k]].abs().max() == 0
        layer = f"transformer.transformer_blocks.1.attn.{piece}"
        theirs = artifact.tensors[f"{layer}.lora_B.default.weight"]
        torch.testing.assert_close(own[:, 2 * k : 2 * k + 2], 0.5 * theirs)
    # A single block's layer has the feed-forward's rows as well, which nothing trained.
    single = tensors["diffusion_model.single_blocks.0.linear1.lora_B.weight"]
    assert tuple(single.shape) == (32 * 3 + 128, 6)
    assert single[96:].abs().max() == 0
    assert model.info.family == "flux"


def test_diffusers_converter_reads_kohyas_flux_file():
    """Of published widths, which its converter has written down: factors of one block of each."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    from dreambooth.interfaces import AdapterTensors
    from dreambooth_plugins.formats.lora.native import fused, places
    from dreambooth_plugins.formats.lora.native_rules import FLUX
    from dreambooth_plugins.formats.lora.transformers import _denoiser, with_roles

    rows = {f"transformer_blocks.0.attn.{leaf}": 3072 for leaf in BOTH}
    rows |= {f"single_transformer_blocks.0.attn.{leaf}": 3072 for leaf in OWN[:3]}
    rows["single_transformer_blocks.0.proj_mlp"] = 12288
    generator = torch.Generator().manual_seed(0)

    def factor(*shape):
        return torch.randn(shape, generator=generator)

    adapters = [
        AdapterTensors(
            "transformer",
            name,
            {"down": factor(2, 3072), "up": factor(out, 2), "alpha": torch.tensor(1.0)},
        )
        for name, out in rows.items()
    ]
    found = fused(places(FLUX, rows), adapters, rows)
    tensors = with_roles("kohya", {_denoiser("kohya", n): t for n, t in found.items()})
    x = factor(3072, 1)
    there = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    for adapter in adapters:
        at = f"transformer.{adapter.module}"
        theirs = there[f"{at}.lora_B.weight"] @ (there[f"{at}.lora_A.weight"] @ x)
        ours = adapter.tensors["up"] @ (adapter.tensors["down"] @ x) * 0.5
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z_image", "flux2_klein", "qwen_image"])
@pytest.mark.parametrize("exporter", [ComfyUI(), Kohya()], ids=["comfyui", "kohya"])
def test_diffusers_reads_the_files_of_others_too(trained, tmp_path, name, exporter):
    """By converters of its own, of any size: another reader than ours."""
    if name == "z_image" and exporter.kind == "kohya":
        pytest.skip("kohya's scripts do not train Z-Image")
    policy = Adapter(
        train=["transformer"], targets="attention", method={"kind": "lora", "alpha": 2}
    )
    model, artifact, _ = held = trained(name, policy)
    export(exporter, held, tmp_path / "out")
    [path] = (tmp_path / "out").glob("*.safetensors")
    pipe = model.pipeline()
    pipe.load_lora_weights(str(tmp_path / "out"), weight_name=path.name, adapter_name="file")
    for module in artifact.metadata["adapters"]["transformer"]["modules"]:
        ours = model.parts["transformer"].get_submodule(module).get_delta_weight("default")
        theirs = pipe.transformer.get_submodule(module).get_delta_weight("file")
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


@of()
@pytest.mark.parametrize("exporter", [Lora(), ComfyUI(), Kohya()], ids=["lora", "comfyui", "kohya"])
def test_an_adapter_goes_on_from_its_file(trained, tmp_path, ctx, name, exporter):
    if name == "z_image" and exporter.kind == "kohya":
        pytest.skip("kohya's scripts do not train Z-Image")
    policy = Adapter(train=["transformer", *CLIPS[name]], targets="attention+mlp")
    model, artifact, _ = held = trained(name, policy)
    export(exporter, held, tmp_path / "out")
    again = ctx.job.model.open(ctx)
    onward = policy.at(tmp_path / "out")
    onward.prepare(again, ctx)
    for part, adapter in artifact.metadata["adapters"].items():
        for module in adapter["modules"]:
            was, now = (
                m.parts[part].get_submodule(module).get_delta_weight("default").detach()
                for m in (model, again)
            )
            torch.testing.assert_close(now, was, rtol=1e-5, atol=1e-6)


def test_a_file_of_another_family_is_refused_by_name(trained, tmp_path, small_job):
    from dreambooth.jobs.checks import preflight

    export(Kohya(), trained("flux", Adapter(train=["transformer"])), tmp_path / "flux")
    for name, family in (("sd3", "SD 3"), ("z_image", "Z-Image")):
        job = small_job(
            model={"kind": name, "source": str(tiny.folder(name))},
            freezing=Adapter(train=["transformer"], init=tmp_path / "flux"),
            **FLOW,
        )
        said = " ".join(problem.message for problem in preflight(job))
        assert "is a Flux LoRA, the model is of" in said
        assert family in said


def test_foreign_names_are_told_by_family(tmp_path):
    """Layouts of published files, by a tensor or two of each."""
    from dreambooth.files.headers import read_header
    from dreambooth_plugins.formats.lora.families import TWO_STREAMS, family

    cases = {
        "Flux": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)},
        "Flux.2": {"diffusion_model.single_blocks.0.linear1.lora_B.weight": (27648, 4)},
        "SD 3": {"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (4, 2432)},
        "Qwen-Image": {"transformer.transformer_blocks.0.img_mod.1.lora_A.weight": (4, 3072)},
        "Z-Image or Lumina": {"diffusion_model.layers.0.attention.to_q.lora_A.weight": (4, 3840)},
        TWO_STREAMS: {"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (4, 3072)},
    }
    for wanted, tensors in cases.items():
        path = tmp_path / "file.safetensors"
        save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
        assert family(read_header(path)) == wanted
