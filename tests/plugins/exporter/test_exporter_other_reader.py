"""stable-diffusion.cpp, through cyllama, opens what we export and draws it.

A reader that shares nothing with diffusers. Models of Stable Diffusion's own sizes with small
random weights: it knows no others. Skipped without cyllama (`pip install cyllama`); needs 8 GB of
memory and 5 GB of disk, and takes minutes.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from dreambooth.interfaces import Artifact
from dreambooth_plugins.exporter import Kohya, SingleFile
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.model import StableDiffusion, builtin, parts_of
from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.folder.saving import save_weights
from dreambooth_plugins.model.folder.source import Source
from dreambooth_plugins.model.folder.tokenizer import make_tokenizer, save_tokenizer
from learning import shake

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.reader]
SIDE, STEPS, SEED = 64, 2, 7
PROMPT = "a photo of ohwx dog"
SIZES = {"sd15": "SD 1.x", "sd21": "SD 2.x"}
"""Shipped configurations, and what the reader calls them."""


@pytest.fixture(scope="module")
def reader() -> Any:
    """The reader, or a skip that says what is missing."""
    return pytest.importorskip(
        "cyllama.sd", reason="stable-diffusion.cpp is not installed: pip install cyllama"
    )


def make_base(dest: Path, name: str) -> Path:
    """Write a folder of a published size in float16, its weights repeated blocks of noise."""
    config = builtin.config_folder(name)
    source = Source(parts_of.STABLE_DIFFUSION, config)
    shutil.copytree(config, dest)
    generator = torch.Generator().manual_seed(0)
    for part in source.parts:
        state = {}
        for tensor_name, shape in skeleton(source, part.name).state_dict().items():
            if shape.ndim < 2:
                value = torch.full(
                    shape.shape, float("norm" in tensor_name and "weight" in tensor_name)
                )
            else:
                block = torch.randn(1 << 16, generator=generator) * shape[0].numel() ** -0.5
                value = block.repeat(shape.numel() // len(block) + 1)[: shape.numel()]
                value = value.reshape(shape.shape)
            if shape.dtype.is_floating_point:
                state[part.file_key(tensor_name)] = value.half()
        save_weights(dest / part.name, part, state)
    save_tokenizer(make_tokenizer(config / "tokenizer", *clip_vocabulary()), dest / "tokenizer")
    return dest


@pytest.fixture(scope="module")
def made(reader, tmp_path_factory, request):
    """A base of a size, as our single file, and an adapter of it as kohya's file."""
    from conftest import FakeContext

    name = request.param
    work = tmp_path_factory.mktemp(name)
    base = make_base(work / "base", name)
    ctx = FakeContext(folder=work, dtype=torch.float16)
    model = StableDiffusion(source=str(base)).open(ctx)
    (work / "single").mkdir()
    SingleFile(dtype="fp16").write(
        Artifact("weights", {}), model, work / "single", ctx, model.info.schedule
    )
    # In SD 2.x the reader holds q, k and v of the text encoder in one matrix, and applies no LoRA
    # there, whoever wrote it.
    parts = ["unet", "text_encoder"] if name == "sd15" else ["unet"]
    policy = Adapter(train=parts, method={"kind": "lora", "rank": 4})
    policy.prepare(model, ctx)
    parameters = policy.trainable(model)
    shake(parameters, 0.1)
    (work / "kohya").mkdir()
    artifact = policy.artifact(model, {n: p.detach() for n, p in parameters.items()})
    Kohya(dtype="fp16").write(artifact, model, work / "kohya", ctx, {})
    return name, work, base


def draw(reader, file, loras=(), prediction="EPS") -> tuple[np.ndarray, str]:
    """Draw with Euler's method and no guidance; return the pixels, and all that was said."""
    said: list[str] = []
    reader.set_log_callback(lambda level, text: said.append(str(text)))
    options = reader.SDContextParams(model_path=str(file), n_threads=1)
    # Noise as torch's generator on a CPU draws it.
    options.rng_type = options.sampler_rng_type = reader.RngType.CPU
    # It finds out what SD 2.x predicts by looking at a prediction, which noise does not tell.
    options.prediction = reader.Prediction[prediction]
    try:
        with reader.SDContext(options) as context:
            wanted = reader.SDImageGenParams(
                prompt=PROMPT, width=SIDE, height=SIDE, seed=SEED, sample_steps=STEPS,
                cfg_scale=1.0, sample_method=reader.SampleMethod.EULER,
                scheduler=reader.Scheduler.DISCRETE,
            )  # fmt: skip
            if loras:
                wanted.set_loras([{"path": str(path), "multiplier": by} for path, by in loras])
            [image] = context.generate_with_params(wanted)
            return image.to_numpy().astype(np.int16), "".join(said)
    finally:
        reader.set_log_callback(None)


@torch.no_grad()
def by_diffusers(file, config, lora=None) -> np.ndarray:
    """Draw the same with diffusers, in float32."""
    pipe = StableDiffusionPipeline.from_single_file(
        str(file), config=str(config), local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    if lora is not None:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    noise = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(SEED))
    [image] = pipe(
        PROMPT, latents=noise, num_inference_steps=STEPS, guidance_scale=1.0,
        height=SIDE, width=SIDE,
    ).images  # fmt: skip
    return np.asarray(image).astype(np.int16)


def apart(one, other) -> float:
    """Return the mean difference of pixels, of 255 levels."""
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("made", SIZES, indirect=True)
def test_it_opens_our_single_file_and_our_lora_and_draws_as_diffusers_does(
    reader, made, emit
) -> None:
    name, work, _ = made
    [file] = (work / "single").glob("*.safetensors")
    [lora] = (work / "kohya").glob("*.safetensors")
    predicts = {"sd15": "EPS", "sd21": "V"}[name]
    plain, said = draw(reader, file, prediction=predicts)
    assert SIZES[name] in said
    assert plain.shape == (SIDE, SIDE, 3)
    off, _ = draw(reader, file, [(lora, 0.0)], predicts)
    assert (off == plain).all()
    on, said = draw(reader, file, [(lora, 1.0)], predicts)
    modules = len([n for n in load_file(lora) if n.endswith(".alpha")])
    told = [line for line in said.splitlines() if "applied" in line or "unused" in line]
    assert f"({3 * modules} / {3 * modules}) LoRA tensors have been applied" in said, told
    # Equal noise, two implementations: half a level apart at most, and the adapter's effect is far
    # above that.
    config = work / "single/config"
    without, through = (
        apart(by_diffusers(file, config, adapter), drawn)
        for adapter, drawn in ((None, plain), (lora, on))
    )
    emit(f"{name}: levels apart from diffusers, without and with the adapter", (without, through))
    emit(f"{name}: the adapter's effect", apart(on, plain))
    assert max(without, through) < 0.5
    assert apart(on, plain) > 2


@pytest.mark.parametrize("made", ["sd15"], indirect=True)
def test_names_that_others_do_not_know_are_refused(reader, made) -> None:
    """The negative control: a reader that takes anything would prove nothing."""
    _, work, _ = made
    [file] = (work / "single").glob("*.safetensors")
    wrong = {n.replace(".text_model.", "."): t for n, t in load_file(file).items()}
    save_file(wrong, work / "wrong.safetensors")
    with pytest.raises(Exception, match=r"(?i)load|model|create"):
        draw(reader, work / "wrong.safetensors")
