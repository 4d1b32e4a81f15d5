"""LoRA files of other tools: every layout, method and base gives the delta of the formula."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lora_files import (
    BUNDLED,
    CONV,
    K_CONV,
    K_KEYS,
    K_PROJ,
    K_TEXT,
    K_TEXT1,
    K_UNET,
    KEYS,
    PROJ,
    TEXT,
    UNET,
    File,
)
from safetensors.torch import save_file

from dreambooth.interfaces import Context
from dreambooth_plugins.formats.lora.contents import read_all
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.freezing.adapter.modules import tuner_layers
from dreambooth_plugins.model import StableDiffusion, parts_of
from dreambooth_plugins.model.tiny import CONFIGS, build_tiny

PAIR = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
NAMED = (".lora_A.default.weight", ".lora_B.default.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
WORDS = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
TE = "text_encoder.text_model.encoder.layers.0.self_attn"


def names(at: str, pair: tuple[str, str]) -> tuple[str, str]:
    return at + pair[0], at + pair[1]


def with_config(file: File, **config: object) -> File:
    file.config = config
    return file


FIXTURES = {
    "kohya": lambda f: f.lora(UNET, *names(K_UNET, PAIR), alpha=2),
    "kohya without alpha": lambda f: f.lora(UNET, *names(K_UNET, PAIR)),
    "kohya text encoder alone": lambda f: f.lora(TEXT, *names(K_TEXT, PAIR), alpha=8),
    "kohya te1": lambda f: f.lora(TEXT, *names(K_TEXT1, PAIR), alpha=8),
    "kohya projection as 1x1": lambda f: f.lora(
        PROJ, *names(K_PROJ, PAIR), alpha=1, kernel=(1, 1)
    ),
    "kohya projection as linear": lambda f: f.lora(PROJ, *names(K_PROJ, PAIR), kernel=()),
    "LoCon": lambda f: f.lora(CONV, *names(K_CONV, PAIR), alpha=4).lora(
        KEYS, *names(K_KEYS, PAIR), rank=8, alpha=4
    ),
    "LoCon with a core": lambda f: f.tucker(CONV, K_CONV),
    "mixed ranks": lambda f: f.lora(UNET, *names(K_UNET, PAIR), rank=2, alpha=1).lora(
        KEYS, *names(K_KEYS, PAIR), rank=7, alpha=1
    ),
    "LoHa": lambda f: f.loha(UNET, K_UNET),
    "LoHa of a convolution": lambda f: f.loha(CONV, K_CONV),
    "LoHa with cores": lambda f: f.loha(CONV, K_CONV, tucker=True),
    "LoHa of a projection": lambda f: f.loha(PROJ, K_PROJ),
    "LoHa by PEFT": lambda f: with_config(
        f.loha(UNET, f"base_model.model.{UNET}", alpha=None, scale=6 / 3), r=3, alpha=6
    ),
    "LoKr": lambda f: f.lokr(UNET, K_UNET),
    "LoKr, whole factors": lambda f: f.lokr(UNET, K_UNET, whole=(True, True), alpha=9.0),
    "LoKr, both in two": lambda f: f.lokr(KEYS, K_KEYS, whole=(False, False), factor=8),
    "LoKr, the left in two": lambda f: f.lokr(KEYS, K_KEYS, whole=(False, True), factor=2),
    "LoKr of a convolution": lambda f: f.lokr(CONV, K_CONV),
    "LoKr of a convolution, whole": lambda f: f.lokr(CONV, K_CONV, whole=(True, True)),
    "LoKr with a core": lambda f: f.lokr(CONV, K_CONV, tucker=True),
    "LoKr by PEFT": lambda f: with_config(
        f.lokr(UNET, f"base_model.model.{UNET}", alpha=None, scale=6 / 2), r=2, alpha=6
    ),
    "LoKr by PEFT, whole factors": lambda f: with_config(
        f.lokr(UNET, f"base_model.model.{UNET}", (True, True), alpha=None, scale=6 / 2),
        r=2, alpha=6,
    ),
    "DoRA by kohya's names": lambda f: f.dora(
        UNET, *names(K_UNET, PAIR), f"{K_UNET}.dora_scale", "[out, 1]"
    ),
    "DoRA of a convolution": lambda f: f.dora(
        CONV, *names(K_CONV, PAIR), f"{K_CONV}.dora_scale", "[out, 1, 1, 1]"
    ),
    "DoRA by PEFT": lambda f: with_config(
        f.dora(UNET, *names(f"base_model.model.{UNET}", PEFT),
               f"base_model.model.{UNET}.lora_magnitude_vector", "[out]"),
        r=4, lora_alpha=4, use_dora=True,
    ),
    "diffusers": lambda f: f.lora(UNET, *names(f"unet.{UNET}", PEFT)),
    "diffusers, of old": lambda f: f.lora(UNET, *names(f"unet.{UNET}", OLD)),
    "diffusers, text encoder": lambda f: f.lora(TEXT, *names(f"{TE}.q_proj", WORDS)),
    "diffusers, processors": lambda f: f.lora(
        UNET,
        f"unet.{UNET}".replace("to_q", "processor.to_q_lora.down.weight"),
        f"unet.{UNET}".replace("to_q", "processor.to_q_lora.up.weight"),
    ),
    "PEFT": lambda f: with_config(
        f.lora(UNET, *names(f"base_model.model.{UNET}", PEFT), scale=6 / 4), r=4, lora_alpha=6
    ),
    "PEFT, rank-stabilised": lambda f: with_config(
        f.lora(UNET, *names(f"base_model.model.{UNET}", PEFT), scale=6 / 4**0.5),
        r=4, lora_alpha=6, use_rslora=True,
    ),
    "PEFT with the adapter's name": lambda f: f.lora(
        UNET, *names(f"base_model.model.{UNET}", NAMED)
    ),
    "PEFT, text encoder": lambda f: with_config(
        f.lora(TEXT, *names(f"base_model.model.text_model.{TEXT}", PEFT), scale=0.25),
        r=4, lora_alpha=1,
    ),
    "PEFT below the part's name": lambda f: f.lora(
        UNET, *names(f"unet.base_model.model.{UNET}", PEFT)
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Return the tiny model as SD 1.x has it, and with the linear projections of SD 2.x."""
    root = tmp_path_factory.mktemp("bases")
    config = root / "config"
    shutil.copytree(CONFIGS / "tiny", config)
    file = config / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_linear_projection": True}))
    (root / "sd2").mkdir()
    build_tiny(config, parts_of.STABLE_DIFFUSION, root / "sd2")
    return {"SD 1.x": "builtin:tiny", "SD 2.x": str(root / "sd2")}


def opened(source: str, module: str, ctx: Context):
    model = StableDiffusion(source=source).open(ctx)
    part = "text_encoder" if module == TEXT else "unet"
    weights = {
        name: model.parts[p].get_submodule(name).weight.detach().clone()
        for p, wanted in (("unet", (UNET, KEYS, PROJ, CONV)), ("text_encoder", (TEXT,)))
        for name in wanted
    }
    return model, part, weights


def method(name: str) -> str:
    return next((m for m in ("LoHa", "LoKr", "DoRA") if name.startswith(m)), "LoRA").lower()


def change(layer, kind: str) -> torch.Tensor:
    """Return what an adapter changes a weight by, asked of PEFT's layer."""
    if kind != "dora":
        return layer.get_delta_weight("default")
    before = layer.get_base_layer().weight.detach().clone()
    layer.merge()
    return layer.get_base_layer().weight.detach() - before


def check(job, policy, path):
    return [p.message for p in policy.check(job, job.model.describe())]


@pytest.mark.parametrize("base", ["SD 1.x", "SD 2.x"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_file_of_another_tool_is_taken_over(ctx, bases, small_job, tmp_path, name, base):
    text = "text encoder" in name or "te1" in name
    model, part, weights = opened(bases[base], TEXT if text else UNET, ctx)
    file = FIXTURES[name](File(weights))
    path = file.save(tmp_path / "lora" / "adapter_model.safetensors")
    policy = Adapter(train=[part], method=method(name), init=path.parent)
    assert check(small_job(model={"source": bases[base]}), policy, path) == []
    policy.prepare(model, ctx)
    found = tuner_layers(model.parts[part])
    assert found.keys() == file.deltas.keys()
    assert all(p.dtype == torch.float32 for p in policy.trainable(model).values())
    for module, delta in file.deltas.items():
        got = change(found[module], method(name))
        assert got.shape == delta.shape
        assert delta.abs().max() > 0.01
        assert torch.allclose(got, delta, rtol=1e-6, atol=1e-6), (got - delta).abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".SafeTensors", ".SAFETENSORS"])
def test_precision_and_case_of_the_suffix_do_not_matter(ctx, tmp_path, dtype, suffix):
    model, part, weights = opened("builtin:tiny", UNET, ctx)
    file = File(weights).lora(UNET, *names(K_UNET, PAIR), alpha=2)
    file.save(tmp_path / f"a{suffix}", dtype)
    Adapter(train=[part], init=tmp_path).prepare(model, ctx)
    layer = model.parts[part].get_submodule(UNET)
    down, up = (file.tensors[K_UNET + end].to(dtype).float() for end in PAIR)
    assert torch.equal(layer.get_delta_weight("default"), up @ down * 0.5)
    assert layer.lora_A["default"].weight.dtype == torch.float32


def test_a_folder_for_each_part_is_peft_s_own(ctx, tmp_path):
    model, _, weights = opened("builtin:tiny", UNET, ctx)
    both = {}
    for part, module, inside in (
        ("unet", UNET, UNET),
        ("text_encoder", TEXT, f"text_model.{TEXT}"),
    ):
        file = File(weights).lora(
            module, *names(f"base_model.model.{inside}", PEFT), scale=0.5
        )  # fmt: skip
        with_config(file, r=4, lora_alpha=2).save(tmp_path / part / "adapter_model.safetensors")
        both[part, module] = file.deltas[module]
    Adapter(train=["unet", "text_encoder"], init=tmp_path).prepare(model, ctx)
    for (part, module), delta in both.items():
        layer = model.parts[part].get_submodule(module)
        assert torch.allclose(layer.get_delta_weight("default"), delta, atol=1e-6)


@pytest.mark.parametrize("foreign", [BUNDLED, "note", "lora_unet_extra.something", "extra.weight"])
def test_what_is_no_adapter_is_left_out_and_named(ctx, tmp_path, foreign):
    model, part, weights = opened("builtin:tiny", UNET, ctx)
    file = File(weights).lora(UNET, *names(K_UNET, PAIR), alpha=2)
    file.tensors[foreign] = torch.ones(3)
    policy = Adapter(train=[part], init=file.save(tmp_path / "a.safetensors"))
    policy.prepare(model, ctx)
    delta = model.parts[part].get_submodule(UNET).get_delta_weight("default")
    assert torch.allclose(delta, file.deltas[UNET], atol=1e-6)
    ctx.job = type("Job", (), {"optimizer": type("O", (), {"lr": 1e-4})})
    [line] = [n for n in policy.notes(model, ctx) if "left out" in n]
    assert foreign in line


PAIRS = {
    "SDXL": [
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
    ],
    "Flux": [
        "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_3_linear1",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "diffusion_model.double_blocks.0.img_attn.qkv",
    ],
    "SD 3": ["lora_unet_joint_blocks_0_x_block_attn_qkv"],
    "Flux, Flux.2, SD 3 or Qwen-Image": ["transformer.transformer_blocks.0.attn.add_q_proj"],
    "Qwen-Image": ["transformer.transformer_blocks.0.img_mlp.net.2"],
    "Wan": ["diffusion_model.blocks.0.cross_attn.k", "lora_unet_blocks_0_self_attn_q"],
    "Z-Image or Lumina": ["diffusion_model.layers.0.attention.qkv"],
}  # fmt: skip
FAMILIES = [(family, name) for family, some in PAIRS.items() for name in some]


def refusal(small_job, tmp_path, tensors, metadata=None, **freezing):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata)
    job = small_job(freezing={"kind": "adapter", "init": path, **freezing})
    [problem] = job.freezing.check(job, job.model.describe())
    assert problem.at == ("freezing", "init")
    assert problem.hint
    return problem.message


def pair(at, into=64, out=64):
    down, up = PAIR if at.startswith("lora_") else PEFT
    return {at + down: torch.ones(4, into), at + up: torch.ones(out, 4)}


@pytest.mark.parametrize(("family", "name"), FAMILIES)
@pytest.mark.parametrize("lie", [None, {"ss_base_model_version": "sd_v1"}])
def test_another_family_is_named_whatever_the_metadata_say(small_job, tmp_path, family, name, lie):
    article = "an" if family.startswith("SD") else "a"
    assert f"is {article} {family} LoRA" in refusal(small_job, tmp_path, pair(name), lie)


@pytest.mark.parametrize(
    ("version", "said"),
    [("sdxl_base_v1-0", "an SDXL LoRA"), ("flux1", "a Flux LoRA"), ("sd3-m", "an SD 3 LoRA")],
)
def test_metadata_tell_where_names_do_not(small_job, tmp_path, version, said):
    about = {"ss_base_model_version": version}
    assert said in refusal(small_job, tmp_path, pair(K_UNET), about)


@pytest.mark.parametrize("at", [K_KEYS, f"unet.{KEYS}"])
@pytest.mark.parametrize(("width", "family"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL")])
def test_the_width_of_the_texts_tells_the_family(tmp_path, small_job, at, width, family):
    if family == "SDXL":
        assert "an SDXL LoRA" in refusal(small_job, tmp_path, pair(at, into=width))
        return
    save_file(pair(at, into=width), tmp_path / "a.safetensors")
    assert [f.family for f in read_all(tmp_path)] == [family]


@pytest.mark.parametrize(
    ("ours", "theirs", "width"),
    [("stable-diffusion-1", "SD 2.x", 1024), ("stable-diffusion-2", "SD 1.x", 768)],
)
def test_the_other_stable_diffusion_is_named(small_job, tmp_path, ours, theirs, width):
    from dataclasses import replace

    save_file(pair(K_KEYS, into=width), tmp_path / "a.safetensors")
    job = small_job(freezing={"kind": "adapter", "init": tmp_path / "a.safetensors"})
    info = replace(job.model.describe(), family=ours)
    [problem] = job.freezing.check(job, info)
    assert f"is an {theirs} LoRA, the model is of" in problem.message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{K_UNET}.diff", "differences of whole weights"), (f"{K_UNET}.w_norm", "differences"),
        (f"{K_UNET}.oft_blocks", "an OFT"), (f"base_model.model.{UNET}.oft_R.weight", "an OFT"),
        (f"base_model.model.{UNET}.boft_R", "a BOFT"), (f"{K_UNET}.on_input", "an IA3"),
        (f"{K_UNET}.a1.weight", "a GLoRA"), (f"base_model.model.{UNET}.lora_E", "an AdaLoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole model"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "an embedding of a word"), ("<ohwx>", "an embedding of a word"),
        ("something.weight", '"something.weight"'),
    ],
)  # fmt: skip
def test_another_method_is_named(small_job, tmp_path, name, said):
    assert f"holds {said}" in refusal(small_job, tmp_path, {name: torch.ones(4, 4)})


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("LoHa", "lora", "is a LoHa, unet is to get lora"),
        ("LoKr", "lora", "is a LoKr, unet is to get lora"),
        ("LoKr", "loha", "is a LoKr, unet is to get loha"),
        ("DoRA by kohya's names", "lora", "is a DoRA, unet is to get lora"),
        ("kohya", "lokr", "is a LoRA, unet is to get lokr"),
    ],
)
def test_a_method_that_is_not_the_jobs_is_named(ctx, small_job, tmp_path, name, wanted, said):
    _, _, weights = opened("builtin:tiny", UNET, ctx)
    file = FIXTURES[name](File(weights))
    message = refusal(small_job, tmp_path, file.tensors, method=wanted, train=["unet"])
    assert said in message


SPOILT = {
    "a LoHa of two ranks": ("LoHa", {f"{K_UNET}.hada_w2_b": torch.ones(5, 32)}, "the ranks [3, 5]"),
    "a LoHa without a factor": ("LoHa", {f"{K_UNET}.hada_w2_a": None}, "factors lack"),
    "half a core": ("LoHa", {f"{K_UNET}.hada_t1": torch.ones(3, 3, 1, 1)}, "factors lack"),
    "a LoKr without its right": ("LoKr", {f"{K_UNET}.lokr_w2_a": None}, "factors lack"),
    "both at once": ("LoKr", {f"{K_UNET}.hada_w1_a": torch.ones(32, 3)}, "factors lack"),
    "a factor of text": ("LoKr", {f"{K_UNET}.lokr_w1": torch.ones(4, 4).int()}, "floating-point"),
    "a factor that is a number": ("LoKr", {f"{K_UNET}.lokr_w1": torch.tensor(1.0)}, "no factor"),
    "a LoHa with magnitudes": ("LoHa", {f"{K_UNET}.dora_scale": torch.ones(32, 1)}, "DoRA's"),
    "magnitudes of inputs": ("kohya", {f"{K_UNET}.dora_scale": torch.ones(1, 32)}, "the inputs"),
    "a core of another rank": (
        "LoCon with a core", {f"{K_CONV}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "between"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_refused_by_its_header(ctx, small_job, tmp_path, case):
    name, changes, said = SPOILT[case]
    _, _, weights = opened("builtin:tiny", UNET, ctx)
    tensors = FIXTURES[name](File(weights)).tensors | changes
    tensors = {n: t for n, t in tensors.items() if t is not None}
    assert said in refusal(small_job, tmp_path, tensors, method=method(name))


@pytest.mark.parametrize("name", ["LoHa", "LoHa with cores", "LoKr", "LoKr with a core", "kohya"])
def test_a_file_of_another_size_is_refused(ctx, tmp_path, name):
    from dreambooth.errors import JobError

    model, part, weights = opened("builtin:tiny", UNET, ctx)
    larger = {n: w.repeat(2, 1, *[1] * (w.dim() - 2)) for n, w in weights.items()}
    path = FIXTURES[name](File(larger)).save(tmp_path / "a.safetensors")
    with pytest.raises(JobError, match=r"takes .* the file has") as caught:
        Adapter(train=[part], method=method(name), init=path).prepare(model, ctx)
    assert "another size" in caught.value.hint
