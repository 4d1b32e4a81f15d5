from __future__ import annotations

import string
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import Conditioning, LatentSpec, LoadedModel, ModelInfo
from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance
from dreambooth_plugins.sampler.steps import SOLVERS, STABLE_DIFFUSION
from dreambooth_plugins.scheduler.ddpm import DDPM

CPU = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
SIZE = (16, 32)
LENGTH = 12


class TinyModel(LoadedModel):
    """A random Stable Diffusion behind the model contract; counts what it is asked."""

    def __init__(self, prediction="epsilon", guidance="cfg", schedule=STABLE_DIFFUSION):
        super().__init__()
        torch.manual_seed(0)
        letters = [*string.ascii_lowercase, *[c + "</w>" for c in string.ascii_lowercase]]
        vocab = {c: i for i, c in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
        self.tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)
        config = CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=53,
        )  # fmt: skip
        text = CLIPTextModel(config).eval()
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=8,
        ).eval()
        with torch.no_grad():  # an untrained network hardly hears its prompt
            for name, parameter in unet.named_parameters():
                if "attn2.to_" in name and name.endswith("weight"):
                    parameter.mul_(4)
        self.parts = {"unet": unet, "text_encoder": text}
        roles = {"denoiser": ("unet",), "text_encoders": ("text_encoder",), "vae": ()}
        self.info = ModelInfo(
            "stable_diffusion", prediction, schedule, ("unet", "text_encoder"), roles,
            LatentSpec(4, 2, 4), 16, guidance,
        )  # fmt: skip
        self.forwards = []
        self.encoded = Counter()

    def encode_prompts(self, prompts):
        self.encoded.update(prompts)
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids
        return [Conditioning({"embeds": e}) for e in self.parts["text_encoder"](ids)[0]]

    def collate(self, conditionings):
        return Conditioning({"embeds": torch.stack([c.tensors["embeds"] for c in conditionings])})

    def condition(self, cond, rows):
        assert [row.target_size for row in rows] == [SIZE] * len(cond.tensors["embeds"])
        return cond

    def denoise(self, z_t, t, cond):
        assert t.shape == z_t.shape[:1]
        self.forwards.append(len(z_t))
        return self.parts["unet"](z_t, t, cond.tensors["embeds"]).sample

    def unused(self, *args, **kwargs):
        raise AssertionError("sampling does not need this")

    loaded = release = fingerprint = encode_images = decode = save = frozen_copy = unused


# Every method the contract asks for is there, whatever it will ask for later.
TinyModel.__abstractmethods__ = frozenset()


@pytest.fixture(scope="module")
def tiny():
    return TinyModel()


def solver_config(prediction="epsilon", zero=False):
    info = ModelInfo("x", prediction, STABLE_DIFFUSION, (), {}, LatentSpec(4, 2, 4), 16)
    return DDPM(zero_terminal_snr=zero).open(info).solver_config(SIZE, 8)


def draw(sampler, model, prompts, seeds, config=None, **more):
    return sampler.sample(
        model, prompts, seeds=seeds, size=SIZE, solver_config=config or solver_config(), ctx=CPU,
        **more,
    )  # fmt: skip


def pipeline_latents(sampler, model, prompts, seeds, config):
    """The same pictures from diffusers' own pipeline."""
    solver = SOLVERS[sampler.solver]
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=model.parts["unet"],
        text_encoder=model.parts["text_encoder"],
        tokenizer=model.tokenizer,
        scheduler=getattr(diffusers, solver.class_name).from_config(config, **solver.options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(prompts),
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=sampler.steps,
        guidance_scale=sampler.scale(),
        guidance_rescale=sampler.rescale,
        negative_prompt=[sampler.negative] * len(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images


def assert_same(ours, theirs):
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.std()


ONE, THREE = ["a dog"], ["a dog", "on the moon", "a dog"]


@pytest.mark.parametrize("prompts", [ONE, THREE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"rescale": 0.7},
        {"negative": "blur"},
        {"negative": "blur", "rescale": 0.7, "guidance_scale": 3.0},
    ],
)
def test_pictures_equal_those_of_diffusers(tiny, prompts, options):
    sampler = ClassifierFreeGuidance(steps=6, **options)
    seeds = [11, 12, 13][: len(prompts)]
    ours = draw(sampler, tiny, prompts, seeds)
    assert_same(ours, pipeline_latents(sampler, tiny, prompts, seeds, solver_config()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_equals_diffusers(tiny, solver):
    sampler = ClassifierFreeGuidance(steps=5, solver=solver)
    ours = draw(sampler, tiny, THREE, [1, 2, 3])
    assert_same(ours, pipeline_latents(sampler, tiny, THREE, [1, 2, 3], solver_config()))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("solver", ["euler", "ddim", "dpmpp_2m", "unipc", "euler_a"])
def test_v_prediction_equals_diffusers_with_and_without_zero_terminal_snr(tiny, solver, zero):
    config = solver_config("v_prediction", zero)
    sampler = ClassifierFreeGuidance(steps=6, solver=solver, rescale=0.7)
    ours = draw(sampler, tiny, THREE, [1, 2, 3], config)
    assert_same(ours, pipeline_latents(sampler, tiny, THREE, [1, 2, 3], config))


def test_karras_sigmas_sample_a_zero_terminal_schedule(tiny):
    # The first Karras sigmas all round to the last timestep.
    config = solver_config("v_prediction", zero=True)
    latents = draw(ClassifierFreeGuidance(steps=30), tiny, ONE, [1], config)
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1])
def test_very_few_steps_work(tiny, solver, steps):
    sampler = ClassifierFreeGuidance(steps=steps, solver=solver)
    assert draw(sampler, tiny, ONE, [1]).shape == (1, 4, 8, 16)


@pytest.mark.parametrize("solver", ["dpmpp_2m_karras", "dpmpp_2m_sde", "euler_a", "ddpm"])
def test_a_picture_does_not_depend_on_its_batch(tiny, solver):
    sampler = ClassifierFreeGuidance(steps=5, solver=solver)
    together = draw(sampler, tiny, THREE, [4, 5, 6])
    alone = draw(sampler, tiny, THREE[1:2], [5])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 0.1


def test_prompt_negative_and_seed_all_matter(tiny):
    sampler = ClassifierFreeGuidance(steps=5)
    base = draw(sampler, tiny, ["a dog"], [1])
    assert torch.equal(base, draw(sampler, tiny, ["a dog"], [1]))
    for other in (
        draw(sampler, tiny, ["a cat"], [1]),
        draw(sampler, tiny, ["a dog"], [2]),
        draw(sampler, tiny, ["a dog"], [1], negative="blur"),
        draw(ClassifierFreeGuidance(steps=5, negative="blur"), tiny, ["a dog"], [1]),
    ):
        assert (other - base).abs().max() > 0.01 * base.std()


def test_a_negative_given_to_sample_replaces_the_option(tiny):
    option = ClassifierFreeGuidance(steps=3, negative="blur")
    assert torch.equal(
        draw(option, tiny, ONE, [1], negative=""),
        draw(ClassifierFreeGuidance(steps=3), tiny, ONE, [1]),
    )


def test_sampling_leaves_the_global_generator_alone(tiny):
    before = torch.random.get_rng_state()
    for solver in SOLVERS:
        draw(ClassifierFreeGuidance(steps=3, solver=solver), tiny, ONE, [1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_distinct_prompts_are_encoded_once_and_both_halves_share_a_forward():
    model = TinyModel()
    draw(ClassifierFreeGuidance(steps=4), model, THREE, [1, 2, 3])
    assert model.encoded == {"": 1, "a dog": 1, "on the moon": 1}
    assert model.forwards == [6] * 4


@pytest.mark.parametrize("guidance", ["embedded", "none"])
def test_families_guided_otherwise_are_not_doubled(guidance):
    model = TinyModel(guidance=guidance)
    draw(ClassifierFreeGuidance(steps=4), model, THREE, [1, 2, 3])
    assert model.forwards == [3] * 4
    assert "" not in model.encoded


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 1.0}, {"interval": (0.28, 5.42)}, {"interval": (1.0, 2.0)}]
)
def test_forwards_counts_what_sampling_costs(tiny, solver, options):
    sampler = ClassifierFreeGuidance(steps=7, solver=solver, **options)
    tiny.forwards.clear()
    draw(sampler, tiny, ONE, [1])
    assert sum(tiny.forwards) == sampler.forwards()
    assert sampler.sampling_steps() == 7


def test_outside_the_interval_the_conditional_half_stands_alone(tiny):
    never = ClassifierFreeGuidance(steps=4, interval=(1000.0, 2000.0))
    plain = ClassifierFreeGuidance(steps=4, guidance_scale=1.0)
    always = ClassifierFreeGuidance(steps=4, interval=(0.0, 1000.0))
    assert torch.equal(draw(never, tiny, ONE, [1]), draw(plain, tiny, ONE, [1]))
    full = draw(ClassifierFreeGuidance(steps=4), tiny, ONE, [1])
    assert torch.equal(draw(always, tiny, ONE, [1]), full)


@pytest.mark.parametrize("solver", ["dpmpp_2m_karras", "pndm", "ddim"])
def test_progress_moves_once_a_sampling_step(tiny, solver):
    bar = SimpleNamespace(done=0)
    bar.advance = lambda count=1: setattr(bar, "done", bar.done + count)
    draw(ClassifierFreeGuidance(steps=7, solver=solver), tiny, ONE, [1], progress=bar)
    assert bar.done == 7


def test_the_result_carries_no_gradient_and_can_enter_one(tiny):
    latents = draw(ClassifierFreeGuidance(steps=2), tiny, ONE, [1])
    assert not latents.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (weight * latents).pow(2).sum().backward()


def test_latents_that_are_not_finite_are_a_run_error(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "denoise", lambda z, t, cond: z / 0)
    with pytest.raises(RunError, match="not finite") as error:
        draw(ClassifierFreeGuidance(steps=2), tiny, ONE, [1])
    assert "learning rate" in error.value.hint


def test_a_size_the_model_cannot_draw_is_refused(tiny):
    with pytest.raises(JobError, match="18 x 16"):
        ClassifierFreeGuidance().sample(
            tiny, ONE, seeds=[1], size=(18, 16), solver_config=solver_config(), ctx=CPU
        )
