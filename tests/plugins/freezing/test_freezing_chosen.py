"""Policies that choose single weights or blocks: cross-attention, globs, block presets."""

from __future__ import annotations

import pytest

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.exports import export_all
from dreambooth.errors import JobError
from dreambooth.jobs.checks import preflight
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.freezing import BlockPreset, CrossAttention, Patterns
from dreambooth_plugins.model import StableDiffusion
from learning import frozen_hashes, learn

POLICIES = {
    "cross-attention": {"kind": "cross_attention"},
    "all of cross-attention": {"kind": "cross_attention", "projections": ["to_q", "to_k", "to_v"]},
    "globs": {
        "kind": "patterns",
        "train": ["unet.*.attn?.*", "text_encoder.*layer_norm*"],
        "freeze": ["*.bias"],
        "lr": {"text_encoder": 1e-3},
    },
}


@pytest.fixture
def tiny(ctx):
    return StableDiffusion(source="builtin:tiny").open(ctx)


@pytest.mark.parametrize("freezing", POLICIES.values(), ids=POLICIES)
def test_it_learns_leaves_the_rest_alone_and_opens_elsewhere(open_for, freezing):
    session = open_for(
        freezing=freezing,
        prior="none",
        optimizer={"lr": 1e-2},
        train={"batch_size": 3, "steps": 15},
    )
    assert session.model.parts["unet"] is not None
    frozen = frozen_hashes(session)
    assert len(frozen) > 180
    before, after = learn(session, 15)
    assert after < 0.95 * before
    assert frozen_hashes(session) == frozen
    owned = {id(p) for group in session.state.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in session.state.parameters.values()}
    [export] = export_all(session, RunFolder(session.job.folder))
    assert export.kind == "diffusers"
    assert export.check.figures["denoiser"] <= 1e-5
    assert export.check.figures["latents"] <= 1e-4


def test_cross_attention_trains_keys_and_values(tiny):
    names = set(CrossAttention().trainable(tiny))
    blocks = ("down_blocks.0.attentions.0", "mid_block.attentions.0",
              "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")  # fmt: skip
    assert names == {
        f"unet.{block}.transformer_blocks.0.attn2.{kv}.weight"
        for block in blocks
        for kv in ("to_k", "to_v")
    }
    outs = set(CrossAttention(projections=["to_out"]).trainable(tiny))
    assert outs == {
        f"unet.{block}.transformer_blocks.0.attn2.to_out.0.{what}"
        for block in blocks
        for what in ("weight", "bias")
    }


def test_cross_attention_trains_no_text_encoder(open_for):
    session = open_for(freezing={"kind": "cross_attention"})
    assert session.model.loaded() == ("unet",)
    assert session.model.text_is_frozen


def test_globs_name_what_trains_and_what_does_not(tiny):
    names = set(Patterns(train=["unet.conv_*"], freeze=["*.bias"]).trainable(tiny))
    assert names == {"unet.conv_in.weight", "unet.conv_norm_out.weight", "unet.conv_out.weight"}
    assert Patterns(train=["unet.conv_*"]).trained_parts(tiny.info) == ("unet",)
    assert Patterns(train=["*.bias"]).trained_parts(tiny.info) == ("unet", "text_encoder")
    assert Patterns(train=["text_*.bias"]).trained_parts(tiny.info) == ("text_encoder",)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"train": ["unet.*.atn2.*"]}, 'train: "unet.*.atn2.*" matches nothing', "names look like"),
        ({"train": ["unet.conv_inn.weight"]}, "matches nothing", "conv_in.weight"),
        ({"train": ["unet.*"], "freeze": ["*.biass"]}, 'freeze: "*.biass"', "bias"),
        ({"train": ["unet.conv_in.bias"], "freeze": ["*.bias"]}, "takes away all", "less"),
    ],
)
def test_globs_that_name_nothing_are_errors(tiny, options, message, hint):
    with pytest.raises(JobError) as caught:
        Patterns(**options).trainable(tiny)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_the_plan_prints_how_much_each_glob_names(small_job, tiny):
    named = [name for name, _ in tiny.named_parameters("unet", "text_encoder")]
    attention = [n for n in named if n.startswith("unet.") and (".attn1." in n or ".attn2." in n)]
    norms = [n for n in named if n.startswith("text_encoder.") and "layer_norm" in n]
    biases = [n for n in named if n.endswith(".bias")]
    plan = make_plan(small_job(freezing=POLICIES["globs"]), Quiet())
    assert plan.notes == (
        f"train unet.*.attn?.*: {len(attention)} tensors",
        f"train text_encoder.*layer_norm*: {len(norms)} tensors",
        f"freeze *.bias: {len(biases)} tensors",
    )
    assert (len(attention), len(norms)) == (40, 10)
    plan = make_plan(small_job(freezing="cross_attention"), Quiet())
    assert plan.notes == ("to_k, to_v of cross-attention: 8 layers",)


@pytest.mark.parametrize(
    ("freezing", "at", "message"),
    [
        ({"kind": "patterns", "train": ["vae.*"]}, ("train", 0), 'do not reach into "vae"'),
        (
            {"kind": "patterns", "train": ["unet.*"], "lr": {"text_encoder": 1e-4}},
            ("lr", "text_encoder"),
            "not a part that trains",
        ),
        ({"kind": "cross_attention", "until": {"vae": 2}}, ("until", "vae"), "not a part"),
        ({"kind": "block_preset"}, ("blocks", 0), "has no blocks known to decide content"),
    ],
)
def test_what_does_not_fit_the_model_is_a_problem(small_job, freezing, at, message):
    [problem] = preflight(small_job(freezing=freezing))
    assert problem.at == ("freezing", *at)
    assert message in problem.message


def test_a_model_without_such_blocks_is_refused_clearly(tiny, ctx):
    with pytest.raises(JobError) as caught:
        BlockPreset(blocks=["style"]).prepare(tiny, ctx)
    assert "has no blocks known to decide style" in caught.value.message
    assert "its attention is at one resolution alone" in caught.value.hint


def blocks_of(parameters):
    return {".".join(name.split(".")[1:4]) for name in parameters}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (
            "content",
            {"down_blocks.2.attentions", "mid_block.attentions.0", "up_blocks.0.attentions"},
        ),
        ("style", {"down_blocks.1.attentions", "up_blocks.1.attentions"}),
    ],
)
def test_blocks_of_content_and_style_get_adapters_on_their_attention(ctx, block, expected):
    model = StableDiffusion(source="builtin:emoji-64").open(ctx)
    policy = BlockPreset(blocks=[block])
    policy.prepare(model, ctx)
    parameters = policy.trainable(model)
    assert blocks_of(parameters) == expected
    ends = {n.split(".lora_")[0].rsplit(".attn", 1)[1][2:] for n in parameters}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    assert policy.artifact(model, parameters).kind == "adapter"


def test_blocks_of_stable_diffusion_1_and_2():
    from dreambooth_plugins.model.stable_diffusion_info import _blocks

    unet = {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}  # fmt: skip
    assert _blocks(unet) == {
        "content": ("unet.down_blocks.2.attentions.*", "unet.mid_block.attentions.*",
                    "unet.up_blocks.1.attentions.*"),
        "style": ("unet.down_blocks.0.attentions.*", "unet.up_blocks.3.attentions.*"),
    }  # fmt: skip
