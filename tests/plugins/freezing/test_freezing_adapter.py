"""The adapter policy: what it is put on, how it begins, what it shows of the base."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError
from dreambooth.interfaces import ParameterGroup
from dreambooth.jobs.schema import job_schema
from dreambooth_plugins.exporter import Kohya, Lora
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.freezing.adapter.methods import METHODS
from dreambooth_plugins.model import StableDiffusion
from learning import digest, shake, tensors

METHODS_AS_TINY_TAKES_THEM = {
    "lora": {"kind": "lora", "rank": 4},
    "dora": {"kind": "dora", "rank": 4},
    "loha": {"kind": "loha", "rank": 4},
    "lokr": {"kind": "lokr", "rank": 4},
    "oft": {"kind": "oft", "block_size": 8},
    "boft": {"kind": "boft", "block_size": 8},
}
BOTH = ["unet", "text_encoder"]


@pytest.fixture
def attached(ctx, make_ctx):
    """Open the tiny model with adapters: `attached(Adapter(...))` -> model, parameters."""

    def make(policy, **options):
        inside = make_ctx(**options) if options else ctx
        model = StableDiffusion(source="builtin:tiny").open(inside)
        policy.prepare(model, inside)
        return model, dict(policy.trainable(model))

    return make


def modules_of(parameters):
    """Return the module names that carry an adapter."""
    names = (name.rsplit(".", 3)[0] for name in parameters)
    return {n.removesuffix(".lora_A").removesuffix(".lora_B") for n in names}


def prediction(model):
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        cond = model.collate(model.encode_prompts(["a dog", "a photo of ohwx"]))
        return model.denoise(z, torch.tensor([3, 700]), cond)


# What it is put on


@pytest.mark.parametrize(
    ("targets", "count", "named"),
    [
        ("attention", 32, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"),
        ("attention+mlp", 40, "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"),
        ("cross_attention", 16, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"),
        ("all_linear", 50, "unet.time_embedding.linear_1"),
        ("conv", 33, "unet.conv_in"),
        (["to_q"], 8, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"),
        (["attn2.to_*"], 16, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"),
        (["unet.mid_*to_k"], 2, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"),
        (["cross_attention", "conv_in"], 17, "unet.conv_in"),
    ],
)  # fmt: skip
def test_targets_are_presets_and_globs(attached, targets, count, named):
    _, parameters = attached(Adapter(targets=targets))
    modules = modules_of(parameters)
    assert len(modules) == count
    assert named in modules


def test_each_part_may_have_its_own_method_targets_and_rates(attached):
    policy = Adapter(
        train=BOTH,
        parts={"text_encoder": {"method": {"kind": "lora", "rank": 2}, "targets": ["fc1"]}},
        lr={"text_encoder": 5e-5},
        weight_decay={"unet": 0.0},
    )
    _, parameters = attached(policy)
    ranks = {n.split(".")[0]: p.shape[0] for n, p in parameters.items() if "lora_A" in n}
    assert ranks == {"unet": 8, "text_encoder": 2}
    assert {n for n in modules_of(parameters) if n.startswith("text")} == {
        "text_encoder.encoder.layers.0.mlp.fc1", "text_encoder.encoder.layers.1.mlp.fc1",
    }  # fmt: skip
    names = list(parameters)
    by_part = {part: tuple(n for n in names if n.startswith(part)) for part in BOTH}
    assert policy.groups(names) == [
        ParameterGroup(by_part["unet"], None, 0.0),
        ParameterGroup(by_part["text_encoder"], 5e-5, None),
    ]


def test_ranks_and_alphas_by_pattern(attached):
    policy = Adapter(method={"kind": "lora", "rank": 4, "alpha": 2, "ranks": {"attn2.*": 16},
                             "alphas": {"mid_block.*": 1}})  # fmt: skip
    model, _ = attached(policy)
    unet = model.parts["unet"]
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    other = unet.up_blocks[1].attentions[0].transformer_blocks[0]
    found = {
        name: (layer.r["default"], layer.lora_alpha["default"], layer.scaling["default"])
        for name, layer in (("mid2", block.attn2.to_q), ("mid1", block.attn1.to_q),
                            ("up2", other.attn2.to_q), ("up1", other.attn1.to_q))
    }  # fmt: skip
    assert found == {"mid2": (16, 1, 1 / 16), "mid1": (4, 1, 0.25), "up2": (16, 2, 0.125),
                     "up1": (4, 2, 0.5)}  # fmt: skip


def test_without_alpha_every_scale_is_one(attached):
    model, _ = attached(Adapter(method={"kind": "lora", "rank": 4, "ranks": {"attn2.*": 16}}))
    layers = [m for m in model.parts["unet"].modules() if hasattr(m, "lora_A")]
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    assert {layer.r["default"] for layer in layers} == {4, 16}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"targets": ["attn2.to_kk"]}, 'targets: "attn2.to_kk" matches nothing', "attn2.to_k"),
        ({"targets": ["to_q", "nowhere"]}, '"nowhere" matches nothing', "names look like unet."),
        (
            {"method": {"kind": "lora", "ranks": {"atn2.*": 4}}},
            'method.ranks: "atn2.*" matches nothing',
            "attn2.",
        ),
        (
            {"train": BOTH, "targets": "conv"},
            "the targets (conv) name nothing in text_encoder",
            "freezing.parts.text_encoder",
        ),
        (
            {"train": BOTH, "targets": ["to_q"]},
            "the targets (to_q) name nothing in text_encoder",
            "freezing.parts.text_encoder",
        ),
        ({"method": {"kind": "oft", "block_size": 24}}, "24 does not divide the 32 inputs", "8"),
        ({"method": "oft", "targets": "conv"}, "PEFT's OFT changes the convolution", "boft"),
        ({"method": {"kind": "boft", "butterfly_factors": 2}}, "CUDA extension", "leave"),
    ],
)
def test_what_cannot_be_put_on_is_named(attached, options, message, hint):
    with pytest.raises(JobError) as caught:
        attached(Adapter(**options))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({"train": ["unett"]}, ("train", 0), 'no part or role "unett"'),
        ({"train": ["vae"]}, ("train", 0), "gives "),
        ({"train": BOTH, "targets": "cross_attention"}, ("targets",), "text_encoder has no cross"),
        ({"parts": {"text_encoder": {}}}, ("parts", "text_encoder"), "not a part that trains"),
        (
            {"train": BOTH, "parts": {"text_encoder": {"targets": "cross_attention"}}},
            ("parts", "text_encoder", "targets"),
            "text_encoder has no cross",
        ),
        ({"lr": {"text_encoder": 1e-4}}, ("lr", "text_encoder"), "not a part that trains"),
        ({"init": "nowhere.safetensors"}, ("init",), "there is no file"),
    ],
)
def test_what_does_not_fit_the_model_is_a_problem(small_job, options, at, message):
    job = small_job(freezing={"kind": "adapter", **options})
    [problem] = job.freezing.check(job, job.model.describe())
    assert problem.at == ("freezing", *at)
    assert message in problem.message


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lorra"},
        {"method": {"kind": "lora", "rank": 0}},
        {"method": {"kind": "lora", "alpha": 0}},
        {"method": {"kind": "lokr", "dropout": 0.1}},
        {"targets": []},
        {"method": {"kind": "lora", "dropout": 1.0}},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        Adapter(**options)


def test_every_method_and_its_options_are_in_the_schema():
    adapter = job_schema()["$defs"]["freezing.adapter"]["properties"]
    bare, *members = adapter["method"]["anyOf"]
    assert set(bare["enum"]) == set(METHODS.kinds()) == set(METHODS_AS_TINY_TAKES_THEM)
    assert {m["properties"]["kind"]["const"] for m in members} == set(bare["enum"])
    for member in members:
        undescribed = [n for n, o in member["properties"].items() if not o.get("description")]
        assert undescribed == ["kind"]


# How it begins


@pytest.mark.parametrize(
    "method", METHODS_AS_TINY_TAKES_THEM.values(), ids=METHODS_AS_TINY_TAKES_THEM
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_float32_and_begin_as_the_base(attached, make_ctx, method, dtype):
    base = StableDiffusion(source="builtin:tiny").open(make_ctx(dtype=getattr(torch, dtype)))
    expected = prediction(base)
    model, parameters = attached(Adapter(method=method, train=BOTH), dtype=getattr(torch, dtype))
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert model.parts["unet"].conv_in.weight.dtype == getattr(torch, dtype)
    # A rotation by nothing and a magnitude of its own norm are the identity to rounding only.
    exact = method["kind"] in ("lora", "loha", "lokr")
    tolerance = {"float32": 0.0 if exact else 1e-5, "bfloat16": 0.0 if exact else 0.1}[dtype]
    assert float((prediction(model) - expected).abs().max()) <= tolerance


def test_initial_values_are_functions_of_seed_and_name_alone(attached):
    _, one = attached(Adapter(targets="attention"))
    torch.manual_seed(123)
    _, again = attached(Adapter(targets="attention"))
    _, more = attached(Adapter(targets=["attention", "conv"], train=["unet"]))
    _, half = attached(Adapter(targets="attention"), dtype=torch.bfloat16)
    _, other = attached(Adapter(targets="attention"), seed=1)
    for name, parameter in one.items():
        assert torch.equal(parameter, again[name])
        assert torch.equal(parameter, more[name])
        assert torch.equal(parameter, half[name])
        assert torch.equal(parameter, other[name]) == ("lora_B" in name)
    drawn = [p.detach() for n, p in one.items() if "lora_A" in n]
    assert len({digest(p) for p in drawn}) == len(drawn)
    bound = max(float(p.abs().max()) * p.shape[1] ** 0.5 for p in drawn)
    assert 0.9 < bound <= 1.0  # Kaiming's: uniform up to 1 / sqrt(fan-in)


def test_putting_adapters_on_leaves_the_callers_random_state_alone(attached):
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    attached(Adapter(method={"kind": "lokr"}))
    assert torch.equal(torch.randn(4), expected)


# What it shows of the base


@pytest.mark.parametrize(
    "method", METHODS_AS_TINY_TAKES_THEM.values(), ids=METHODS_AS_TINY_TAKES_THEM
)
def test_the_reference_is_the_base_to_the_bit(attached, ctx, method):
    expected = prediction(StableDiffusion(source="builtin:tiny").open(ctx))
    policy = Adapter(method=method, train=BOTH)
    model, parameters = attached(policy)
    shake(parameters)
    assert not torch.equal(prediction(model), expected)
    some = list(parameters.values())[::3]
    for parameter in some:
        parameter.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in tensors(model).items()}
    with policy.showing_base(model):
        assert torch.equal(prediction(model), expected)
    assert {n: p.requires_grad for n, p in tensors(model).items()} == flags
    assert not torch.equal(prediction(model), expected)


def test_the_reference_does_not_see_texts_of_the_adapted_text_encoder(attached):
    policy = Adapter(train=BOTH)
    model, parameters = attached(policy)
    [base] = model.conditionings(["a dog"])
    model.embeddings.clear()
    shake(parameters)
    [adapted] = model.conditionings(["a dog"])
    kept = model.embeddings
    assert not torch.equal(base.tensors["embeds"], adapted.tensors["embeds"])
    with policy.showing_base(model):
        [shown] = model.conditionings(["a dog"])
    assert torch.equal(shown.tensors["embeds"], base.tensors["embeds"])
    assert model.embeddings is kept
    assert model.text_is_frozen
    assert model.conditionings(["a dog"])[0] is adapted


# Going on with a file


def written(policy, model, parameters, exporter, dest, ctx):
    dest.mkdir()
    weights = {n: p.detach() for n, p in parameters.items()}
    exporter.write(policy.artifact(model, weights), model, dest, ctx, {})
    return dest


@pytest.mark.parametrize("exporter", [Lora(), Kohya()], ids=["lora", "kohya"])
def test_a_file_we_wrote_goes_on_as_it_was(attached, ctx, tmp_path, exporter):
    method = {"kind": "lora", "rank": 4, "alpha": 1}
    policy = Adapter(method=method, train=BOTH, targets="attention+mlp")
    model, parameters = attached(policy)
    shake(parameters)
    dest = written(policy, model, parameters, exporter, tmp_path / "file", ctx)
    # Rank, alpha and targets are the file's, whatever the job says.
    again, read = attached(Adapter(train=BOTH, init=dest))
    assert read.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(read[name], parameter), name
    assert all(p.requires_grad for p in read.values())
    assert torch.equal(prediction(again), prediction(model))


def test_dora_goes_on_with_its_magnitudes(attached, ctx, tmp_path):
    policy = Adapter(method={"kind": "dora", "rank": 2}, train=BOTH)
    model, parameters = attached(policy)
    shake(parameters)
    dest = written(policy, model, parameters, Lora(), tmp_path / "file", ctx)
    _, read = attached(Adapter(method="dora", train=BOTH, init=dest))
    for name, parameter in parameters.items():
        assert torch.equal(read[name], parameter), name


def test_a_lora_may_go_on_as_dora_from_the_same_function(attached, ctx, tmp_path):
    policy = Adapter(method={"kind": "lora", "rank": 2, "alpha": 3})
    model, parameters = attached(policy)
    shake(parameters)
    dest = written(policy, model, parameters, Lora(), tmp_path / "file", ctx)
    again, _ = attached(Adapter(method="dora", init=dest))
    assert torch.allclose(prediction(again), prediction(model), atol=1e-5)


ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "encoder.layers.0.self_attn"
FOREIGN = {
    "kohya, alpha 2 of rank 4": (
        {f"lora_unet_{ATTN.replace('.', '_')}_to_q.lora_down.weight": "down",
         f"lora_unet_{ATTN.replace('.', '_')}_to_q.lora_up.weight": "up",
         f"lora_unet_{ATTN.replace('.', '_')}_to_q.alpha": 2.0},
        f"unet.{ATTN}.to_q", 0.5),
    "kohya, no alpha": (
        {f"lora_unet_{ATTN.replace('.', '_')}_to_out_0.lora_down.weight": "down",
         f"lora_unet_{ATTN.replace('.', '_')}_to_out_0.lora_up.weight": "up"},
        f"unet.{ATTN}.to_out.0", 1.0),
    "kohya, text encoder": (
        {f"lora_te_text_model_{LAYER.replace('.', '_')}_q_proj.lora_down.weight": "down",
         f"lora_te_text_model_{LAYER.replace('.', '_')}_q_proj.lora_up.weight": "up",
         f"lora_te_text_model_{LAYER.replace('.', '_')}_q_proj.alpha": 8.0},
        f"text_encoder.{LAYER}.q_proj", 2.0),
    "diffusers with PEFT's names": (
        {f"unet.{ATTN}.to_q.lora_A.weight": "down", f"unet.{ATTN}.to_q.lora_B.weight": "up"},
        f"unet.{ATTN}.to_q", 1.0),
    "diffusers with its own names": (
        {f"unet.{ATTN}.to_q.lora.down.weight": "down", f"unet.{ATTN}.to_q.lora.up.weight": "up"},
        f"unet.{ATTN}.to_q", 1.0),
    "old diffusers, attention processors": (
        {f"unet.{ATTN}.processor.to_out_lora.down.weight": "down",
         f"unet.{ATTN}.processor.to_out_lora.up.weight": "up"},
        f"unet.{ATTN}.to_out.0", 1.0),
    "diffusers, text encoder": (
        {f"text_encoder.text_model.{LAYER}.out_proj.lora_linear_layer.down.weight": "down",
         f"text_encoder.text_model.{LAYER}.out_proj.lora_linear_layer.up.weight": "up"},
        f"text_encoder.{LAYER}.out_proj", 1.0),
    "old diffusers, text encoder": (
        {f"text_encoder.text_model.{LAYER}.to_k_lora.down.weight": "down",
         f"text_encoder.text_model.{LAYER}.to_k_lora.up.weight": "up"},
        f"text_encoder.{LAYER}.k_proj", 1.0),
    "PEFT, saved alone": (
        {f"base_model.model.{ATTN}.to_q.lora_A.weight": "down",
         f"base_model.model.{ATTN}.to_q.lora_B.weight": "up"},
        f"unet.{ATTN}.to_q", 1.0),
}  # fmt: skip


def save_foreign(path, names, rank=4, width=32, metadata=None):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    made = {"down": torch.randn(rank, width, generator=generator),
            "up": torch.randn(width, rank, generator=generator)}  # fmt: skip
    whole = {
        n: torch.tensor(w) if isinstance(w, float) else made[w].clone() for n, w in names.items()
    }
    save_file(whole, path, metadata=metadata)
    return made


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
def test_files_of_other_programs_are_read(attached, ctx, tmp_path, names):
    file_names, module, scale = names
    made = save_foreign(tmp_path / "a.safetensors", file_names)
    part = module.split(".")[0]
    model, parameters = attached(Adapter(train=[part], init=tmp_path / "a.safetensors"))
    assert modules_of(parameters) == {module}
    layer = model.parts[part].get_submodule(module.removeprefix(f"{part}."))
    assert layer.scaling["default"] == pytest.approx(scale)
    base = layer.get_base_layer()
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    expected = base(x) + scale * (x @ made["down"].T @ made["up"].T)
    assert torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize("stabilized", [False, True])
def test_metadata_of_a_file_gives_alpha_and_rule(attached, tmp_path, stabilized):
    names = FOREIGN["diffusers with PEFT's names"][0]
    about = {"unet.r": 4, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 2},
             "unet.use_rslora": stabilized}  # fmt: skip
    path = tmp_path / "a.safetensors"
    save_foreign(path, names, metadata={"lora_adapter_metadata": json.dumps(about)})
    for own in (False, True):
        policy = Adapter(method={"kind": "lora", "rank_stabilized": own}, init=path)
        model, _ = attached(policy)
        layer = model.parts["unet"].get_submodule(f"{ATTN}.to_q")
        assert layer.scaling["default"] == pytest.approx(2 / 2 if stabilized else 2 / 4)


@pytest.mark.parametrize(
    ("names", "width", "message"),
    [
        ({"lora_unet_elsewhere.lora_down.weight": "down",
          "lora_unet_elsewhere.lora_up.weight": "up"}, 32, "has no module"),
        ({f"unet.{ATTN}.to_q.lora_A.weight": "down",
          f"unet.{ATTN}.to_q.lora_B.weight": "up"}, 16, "of another size"),
    ],
)  # fmt: skip
def test_a_file_for_another_model_is_refused(attached, tmp_path, names, width, message):
    save_foreign(tmp_path / "a.safetensors", names, width=width)
    with pytest.raises(JobError) as caught:
        attached(Adapter(init=tmp_path / "a.safetensors"))
    assert message in caught.value.message + caught.value.hint


TO_Q = f"lora_unet_{ATTN.replace('.', '_')}_to_q"
Q_PROJ = f"lora_te_text_model_{LAYER.replace('.', '_')}_q_proj"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([f"{TO_Q}.lora_down.weight"], {}, "no pair of LoRA weights"),
        ([f"{TO_Q}.lokr_w1"], {}, "factors lack"),
        ([f"{TO_Q}.dora_scale"], {}, "no pair of LoRA weights"),
        (["conv_in.weight"], {}, "cannot be taken over"),
        ([f"{Q_PROJ}.lora_down.weight", f"{Q_PROJ}.lora_up.weight"], {}, "which does not train"),
        ([f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight"], {"method": "loha"}, "is a LoRA"),
        (
            [f"unet.{ATTN}.to_q.{n}" for n in ("lora_A.weight", "lora_B.weight",
                                               "lora_magnitude_vector")],
            {},
            "is a DoRA, unet is to get lora",
        ),
    ],
)  # fmt: skip
def test_files_that_cannot_go_on_are_problems(small_job, tmp_path, names, options, message):
    path = tmp_path / "a.safetensors"
    save_foreign(path, {n: "up" if "up" in n or "lora_B" in n else "down" for n in names})
    job = small_job(freezing={"kind": "adapter", "init": path, **options})
    [problem] = job.freezing.check(job, job.model.describe())
    assert problem.at == ("freezing", "init")
    assert message in problem.message


# The plan


def test_the_plan_counts_adapters_and_names_rank_and_a_low_rate(small_job):
    options = {"kind": "adapter", "train": BOTH, "method": {"kind": "lora", "rank": 4, "alpha": 2}}
    plan = make_plan(small_job(freezing=options, optimizer={"lr": 5e-6}), Quiet())
    parts = {part.name: part for part in plan.parts}
    # q, k, v and out of 4 blocks, self and cross, all 32 or 64 wide: 4 x (in + out) each
    assert parts["text_encoder"].trainable == 2 * 4 * 4 * (32 + 32)
    assert 0 < parts["unet"].trainable < 0.1 * parts["unet"].parameters
    assert plan.notes == (
        "unet: lora on 32 modules, rank 4, alpha 2",
        "text_encoder: lora on 8 modules, rank 4, alpha 2",
        "adapters want a learning rate of about 1e-4, and have 5e-06 for unet and "
        "5e-06 for text_encoder",
    )
    assert plan.memory.optimizer == 8 * sum(p.trainable for p in plan.parts)


@pytest.mark.parametrize(
    "method", METHODS_AS_TINY_TAKES_THEM.values(), ids=METHODS_AS_TINY_TAKES_THEM
)
def test_the_plan_counts_what_the_run_trains(small_job, attached, method):
    plan = make_plan(small_job(freezing={"kind": "adapter", "method": method}), Quiet())
    _, parameters = attached(Adapter(method=method))
    assert sum(p.trainable for p in plan.parts) == sum(p.numel() for p in parameters.values())
