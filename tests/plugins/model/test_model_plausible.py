"""Absurd and missing keys of a model's JSON files: told by `describe`, at their file and key."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError
from dreambooth.interfaces import Conditioning
from dreambooth_plugins.model.auto import Auto
from dreambooth_plugins.model.builtin import BASES, CONFIGS
from dreambooth_plugins.model.folder.plausible import SCHEDULERS
from dreambooth_plugins.model.folder.source import Source
from dreambooth_plugins.model.stable_diffusion import StableDiffusion
from sd_folder import PARTS, STEMS


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` takes one away."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def refused(folder: Path, *said: str) -> JobError:
    began = time.monotonic()
    with pytest.raises(JobError) as caught:
        StableDiffusion(source=str(folder)).describe()
    assert time.monotonic() - began < 2.0
    for words in said:
        assert words in caught.value.message
    assert caught.value.hint
    return caught.value


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("unet/config.json", {"layers_per_block": 10**7}, "layers_per_block"),
    ("unet/config.json", {"layers_per_block": [1, 2, 3]}, "layers_per_block"),
    ("unet/config.json", {"transformer_layers_per_block": 60, "layers_per_block": 60}, "over 1024"),
    ("unet/config.json", {"block_out_channels": [32, 10**9]}, "block_out_channels"),
    ("unet/config.json", {"block_out_channels": []}, "block_out_channels"),
    ("unet/config.json", {"block_out_channels": [32, 60]}, "norm_num_groups"),
    ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "down_block_types"),
    ("unet/config.json", {"in_channels": ...}, "in_channels"),
    ("unet/config.json", {"sample_size": 0}, "sample_size"),
    ("unet/config.json", {"norm_eps": float("nan")}, "norm_eps"),
    ("unet/config.json", {"act_fn": "x" * 5000}, "act_fn"),
    ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
    ("unet/config.json", {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers"),
    ("text_encoder/config.json", {"hidden_size": True}, "hidden_size"),
    ("text_encoder/config.json", {"num_attention_heads": 5}, "hidden_size"),
    ("text_encoder/config.json", {"vocab_size": 10**12}, "vocab_size"),
    ("text_encoder/config.json", {"vocab_size": 1500}, "the tokenizer has an id 1513"),
    ("text_encoder/config.json", {"max_position_embeddings": -1}, "max_position_embeddings"),
    ("text_encoder/config.json", {"eos_token_id": None}, "eos_token_id"),
    ("text_encoder/config.json", {"eos_token_id": [2]}, "eos_token_id"),
    ("vae/config.json", {"scaling_factor": 0}, "scaling_factor"),
    ("vae/config.json", {"in_channels": 4}, "in_channels"),
    ("vae/config.json", {"latent_channels": ...}, "latent_channels"),
    ("vae/config.json", {"down_block_types": ...}, "down_block_types"),
    ("vae/config.json", {"up_block_types": ...}, "up_block_types"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e3}, "num_train_timesteps"),
    ("scheduler/scheduler_config.json", {"beta_end": 1.5}, "beta_end"),
    ("scheduler/scheduler_config.json", {"beta_start": -1}, "beta_start"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1, "x"]}, "trained_betas"),
    ("scheduler/scheduler_config.json", {"_class_name": "os.system"}, "_class_name"),
    ("scheduler/scheduler_config.json", {"timestep_spacing": "x"}, "timestep_spacing"),
    ("tokenizer/special_tokens_map.json", {"pad_token": {"\x1b[31m": 1}}, "pad_token"),
    ("tokenizer/special_tokens_map.json", {"x": [{"content": "x", "\x1b[31m": 1}]}, "x"),
    ("tokenizer/tokenizer_config.json", {"added_tokens_decoder": {"5": {"\x1b[31m": 1}}}, "5"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "key"), ABSURD)
def test_absurd_and_missing_keys_are_told_at_their_file_and_key(
    folder: Path, name: str, changes: dict[str, Any], key: str
) -> None:
    change(folder / name, **changes)
    refused(folder, str(folder / name), key)


def test_the_name_of_a_scheduler_comes_from_the_index_or_is_asked_for(folder: Path) -> None:
    """A run without it trained to its end and failed when it wrote the result."""
    schedule = folder / "scheduler/scheduler_config.json"
    change(schedule, _class_name=...)
    change(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    info = StableDiffusion(source=str(folder)).describe()
    assert info.schedule["_class_name"] == "PNDMScheduler"
    change(folder / "model_index.json", scheduler=...)
    refused(folder, f'{schedule} has no "_class_name"')


@pytest.mark.parametrize("known", [*CONFIGS.iterdir(), BASES / "emoji-64"], ids=lambda p: p.name)
def test_real_configurations_are_plausible(known: Path) -> None:
    assert Auto(source=str(known)).family().info(source_of(known)).schedule["_class_name"]


def source_of(folder: Path) -> Source:
    return Source(Auto(source=str(folder)).family().parts, folder)


def test_the_schedulers_that_may_be_named_are_diffusers_own() -> None:
    assert all(hasattr(diffusers, name) for name in SCHEDULERS)


@pytest.mark.parametrize(
    "name",
    ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
     "tokenizer/special_tokens_map.json", "unet/generation_config.json", "chat_template.jinja"],
)  # fmt: skip
def test_a_pipe_in_a_folder_is_told_at_once(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/merges.txt"])
def test_a_link_to_a_device_and_a_huge_text_are_told(folder: Path, name: str) -> None:
    file = folder / name
    good = file.read_bytes()
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(folder, str(file), "a device")
    file.unlink()
    file.write_bytes(good)
    os.truncate(file, 1 << 40)
    refused(folder, str(file), "larger than")


@pytest.mark.parametrize("text", [b"", b"a b c\n" * 9, b"\xff\xfe", b"x\n"])
def test_merges_that_are_none_are_told(folder: Path, text: bytes) -> None:
    (folder / "tokenizer/merges.txt").write_bytes(text)
    model = StableDiffusion(source=str(folder))
    if text:
        refused(folder, "hold no vocabulary that can be read")
    else:
        assert model.vocabulary().split("ab") == ["a", "b"]


@pytest.mark.parametrize("part", PARTS)
def test_weights_cut_short_are_told_before_the_run(folder: Path, part: str) -> None:
    file = folder / part / f"{STEMS[part]}.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    refused(folder, str(file))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["short", "shape"])
def test_the_plan_tells_weights_that_do_not_fit_their_configuration(
    folder: Path, part: str, how: str, small_job: Any
) -> None:
    file = folder / part / f"{STEMS[part]}.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda n: tensors[n].ndim)
    tensors[name] = tensors[name][:1].clone()
    if how == "short":
        del tensors[name]
    save_file(tensors, file)
    job = small_job(model={"kind": "stable_diffusion", "source": str(folder)}, prior="none")
    with pytest.raises(JobError, match=r"lacks weights|asks for") as caught:
        make_plan(job, Quiet())
    assert str(file) in caught.value.message


@pytest.mark.parametrize("part", PARTS)
def test_the_plan_tells_a_configuration_of_a_smaller_network_than_its_weights(
    folder: Path, part: str, small_job: Any
) -> None:
    """diffusers and transformers leave weights out that they do not know, with a log line."""
    file = folder / part / f"{STEMS[part]}.safetensors"
    tensors = load_file(file)
    layer = next(name for name in sorted(tensors) if ".0." in name)
    tensors[layer.replace(".0.", ".7.")] = tensors[layer].clone()
    save_file(tensors, file)
    job = small_job(model={"kind": "stable_diffusion", "source": str(folder)}, prior="none")
    with pytest.raises(JobError, match=r"has 1 weights of .* does not describe") as caught:
        make_plan(job, Quiet())
    assert str(file) in caught.value.message


def test_tables_and_heads_that_text_encoders_come_with_are_no_fault(
    folder: Path, small_job: Any
) -> None:
    file = folder / "text_encoder" / f"{STEMS['text_encoder']}.safetensors"
    tensors = load_file(file)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["text_projection.weight"] = torch.zeros(8, 32)
    save_file(tensors, file)
    make_plan(
        small_job(model={"kind": "stable_diffusion", "source": str(folder)}, prior="none"), Quiet()
    )


def test_the_plan_tells_a_configuration_whose_network_cannot_run(folder: Path, ctx: Any) -> None:
    """Which options go together is known to the libraries alone; what is injected is not blamed."""
    ctx.device = torch.device("meta")
    model = StableDiffusion(source=str(folder)).open(ctx)
    change(folder / "text_encoder/config.json", eos_token_id=None)
    with pytest.raises(JobError, match="describes no text_encoder that works") as caught:
        model.encode_prompts(["a dog"])
    assert str(folder / "text_encoder/config.json") in caught.value.message

    def broken(*_: Any, **named: Any) -> None:
        raise ValueError("mine")

    model.parts["unet"].forward = broken
    cond = Conditioning({"embeds": torch.empty(1, 77, 32, device="meta")})
    with pytest.raises(ValueError, match="mine"):
        model.denoise(torch.empty(1, 4, 8, 8), torch.zeros(1), cond)
