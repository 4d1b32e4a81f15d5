"""`StableDiffusion.describe`: what a model is, without torch, and what is said of the others."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from dreambooth.errors import JobError
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.builtin import CONFIGS
from dreambooth_plugins.model.stable_diffusion_info import model_info
from sd_folder import Source

U, V, C = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


def write_header(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    """Write a safetensors file of zeros, by the format's description rather than its library."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


def original_layout(width: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    text = "transformer.text_model." if width == 768 else "model.transformer."
    return {
        f"{U}input_blocks.0.0.weight": (1, channels, 3, 3),
        f"{U}input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight": (1, 320),
        f"{U}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, width),
        f"{V}encoder.conv_in.weight": (1, 3, 3, 3),
        f"{C}{text}embeddings.token_embedding.weight": (2, 2),
    }


def edited(folder: Path, name: str, **changes) -> Path:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("source", ["builtin:tiny", None])
def test_tiny_is_described_by_name_and_as_a_folder(source, tiny_model):
    info = StableDiffusion(source=source or str(tiny_model)).describe()
    assert info.prediction == "epsilon"
    assert info.parts == ("unet", "text_encoder", "vae")
    assert info.part_names("denoiser", "text_encoders", "vae") == info.parts
    assert (info.latent.channels, info.latent.factor, info.latent.multiple) == (4, 4, 8)
    assert info.resolution == 32
    assert info.schedule["beta_end"] == 0.012


@pytest.mark.parametrize(
    ("name", "family", "prediction", "resolution"),
    [
        ("sd15", "stable-diffusion-1", "epsilon", 512),
        ("sd20-base", "stable-diffusion-2", "epsilon", 512),
        ("sd21", "stable-diffusion-2", "v_prediction", 768),
    ],
)
def test_shipped_configurations(name, family, prediction, resolution):
    info = model_info(Source(CONFIGS / name))
    assert (info.family, info.prediction, info.resolution) == (family, prediction, resolution)
    assert (info.latent.factor, info.latent.multiple) == (8, 64)


def test_describing_imports_no_torch(tmp_path):
    file = write_header(tmp_path / "model.safetensors", original_layout(768))
    code = (
        "import sys; from dreambooth_plugins.model import StableDiffusion as S;"
        f"S(source='builtin:tiny').describe(); S(source={str(file)!r}).describe();"
        "print([m for m in ('torch', 'numpy', 'diffusers', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_v_prediction_folder(folder):
    edited(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert StableDiffusion(source=str(folder)).describe().prediction == "v_prediction"


def test_a_relative_path_starts_at_the_job_file(folder):
    context = {"base": str(folder.parent)}
    model = StableDiffusion.model_validate({"source": "model", "vae": "model/vae"}, context=context)
    assert model.source == str(folder)
    assert model.vae == str(folder / "vae")
    nested = StableDiffusion.model_validate({"source": "model/unet"}, context=context)
    assert nested.source == str(folder / "unet")  # a path that exists is no hub id
    hub = StableDiffusion.model_validate({"source": "some/model"}, context=context)
    assert hub.source == "some/model"


@pytest.mark.parametrize(
    ("width", "metadata", "family", "prediction"),
    [
        (768, {}, "stable-diffusion-1", "epsilon"),
        (1024, {"modelspec.prediction_type": "epsilon"}, "stable-diffusion-2", "epsilon"),
        (1024, {"modelspec.prediction_type": "v"}, "stable-diffusion-2", "v_prediction"),
        (
            1024,
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            "stable-diffusion-2",
            "v_prediction",
        ),
    ],
)
def test_a_single_file_is_told_by_its_header(tmp_path, width, metadata, family, prediction):
    file = write_header(tmp_path / "m.safetensors", original_layout(width), **metadata)
    info = StableDiffusion(source=str(file)).describe()
    assert (info.family, info.prediction) == (family, prediction)


def test_sd2_file_that_does_not_say_what_it_predicts_asks_for_a_config(tmp_path):
    file = write_header(tmp_path / "m.safetensors", original_layout(1024))
    with pytest.raises(JobError, match="does not say what it predicts") as caught:
        StableDiffusion(source=str(file)).describe()
    assert "builtin:sd21" in caught.value.hint
    named = StableDiffusion(source=str(file), config="builtin:sd21").describe()
    assert named.prediction == "v_prediction"


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": (1,)}, "SDXL"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "Flux"),
        ({f"{U}joint_blocks.0.x_block.attn.qkv.weight": (1,)}, "Stable Diffusion 3"),
        ({"lora_unet_down_blocks_0.lora_up.weight": (1,)}, "adapter"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "one part of a diffusers folder"),
        ({"something.else": (1,)}, "not a whole Stable Diffusion checkpoint"),
        (original_layout(768, channels=9), "inpainting"),
        (original_layout(512), "no shipped configuration fits"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, shapes, said):
    file = write_header(tmp_path / "m.safetensors", shapes)
    with pytest.raises(JobError, match=said):
        StableDiffusion(source=str(file)).describe()


def test_a_file_cut_short_is_refused(tmp_path):
    file = write_header(tmp_path / "m.safetensors", original_layout(768))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(JobError, match="cannot be read as a checkpoint"):
        StableDiffusion(source=str(file)).describe()
    file.write_bytes(b"<!doctype html><html>not a model</html>")
    with pytest.raises(JobError, match="cannot be read as a checkpoint"):
        StableDiffusion(source=str(file)).describe()


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_a_pickled_checkpoint_needs_allow_pickle_and_is_never_run_here(tmp_path):
    file = tmp_path / "model.ckpt"
    names = {name: _Bomb() for name in original_layout(768)}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(names))
    with pytest.raises(JobError, match="is a pickle") as caught:
        StableDiffusion(source=str(file)).describe()
    assert "allow_pickle" in caught.value.hint
    info = StableDiffusion(source=str(file), allow_pickle=True).describe()
    assert info.family == "stable-diffusion-1"


def test_pickled_weights_in_a_folder_need_allow_pickle(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(JobError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        StableDiffusion(source=str(folder)).describe()
    assert StableDiffusion(source=str(folder), allow_pickle=True).describe().resolution == 32


def test_missing_weights_name_the_variant_that_is_there(folder):
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(folder / "vae/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(JobError, match="holds no weights") as caught:
        StableDiffusion(source=str(folder)).describe()
    assert "model.variant" in caught.value.hint
    assert StableDiffusion(source=str(folder), variant="fp16").describe().resolution == 32


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "model_index.json",
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "StableDiffusionXLPipeline",
        ),
        (
            "model_index.json",
            {"_class_name": "FluxPipeline", "unet": [None, None]},
            "FluxPipeline",
        ),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("text_encoder/config.json", {"hidden_size": 64}, "width 32, the text encoder gives 64"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "the VAE is a AutoencoderTiny"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample'"),
    ],
)
def test_folders_of_other_families_are_refused(folder, file, changes, said):
    edited(folder, file, **changes)
    with pytest.raises(JobError, match=said):
        StableDiffusion(source=str(folder)).describe()


def test_folders_that_are_no_models(tmp_path, folder):
    with pytest.raises(JobError, match="there is no model at"):
        StableDiffusion(source=str(tmp_path / "nowhere")).describe()
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/v1-5.safetensors").touch()
    with pytest.raises(JobError, match=r"has no model_index\.json") as caught:
        StableDiffusion(source=str(tmp_path / "loose")).describe()
    assert "v1-5.safetensors" in caught.value.hint
    (folder / "unet/config.json").unlink()
    with pytest.raises(JobError, match=r"unet/config\.json cannot be read"):
        StableDiffusion(source=str(folder)).describe()
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(JobError, match="not valid JSON"):
        StableDiffusion(source=str(folder)).describe()
    (folder / "unet/config.json").write_text("{}")
    with pytest.raises(JobError, match=r'unet/config\.json has no "block_out_channels"'):
        StableDiffusion(source=str(folder)).describe()


def test_unknown_builtin_suggests_the_nearest():
    with pytest.raises(JobError) as caught:
        StableDiffusion(source="builtin:emoji64").describe()
    assert "did you mean builtin:emoji-64?" in caught.value.hint


def test_another_vae_must_exist_and_fit(tiny_model, folder):
    with pytest.raises(JobError, match="there is no VAE at"):
        StableDiffusion(source=str(tiny_model), vae=str(folder / "no")).describe()
    edited(folder, "vae/config.json", latent_channels=16)
    with pytest.raises(JobError, match="VAE has 16 latent channels"):
        StableDiffusion(source=str(tiny_model), vae=str(folder)).describe()


def test_hub_id_offline_answers_at_once(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(JobError, match="nobody/nothing is not in the local hub cache") as caught:
        StableDiffusion(source="nobody/nothing").describe()
    assert time.monotonic() - start < 2.0
    assert "hf download nobody/nothing" in caught.value.hint


def test_hub_that_never_answers_is_given_up_on_within_two_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        start = time.monotonic()
        with pytest.raises(JobError, match="cannot be reached"):
            StableDiffusion(source="nobody/nothing").describe()
        assert 0.5 < time.monotonic() - start < 2.0


def test_hub_model_in_the_local_cache_opens_offline(monkeypatch, tmp_path, tiny_model, ctx):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--model"
    shutil.copytree(tiny_model, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    model = StableDiffusion(source="some/model")
    assert model.describe().resolution == 32
    assert model.open(ctx).fingerprint("unet")
    (repo / "snapshots" / commit / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(JobError, match="only partly in the local hub cache"):
        model.describe()
