"""BLIP and Florence-2 say what transformers' own classes say, with random weights of small size."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from dreambooth.errors import JobError
from dreambooth.jobs.named import named
from dreambooth.testing import CaptionerConformance
from dreambooth_plugins.captioner.blip import Blip
from dreambooth_plugins.captioner.florence2 import Florence2
from dreambooth_plugins.captioner.networks import ASKED

WORDS = ["a", "photo", "of", "dog", "cat", "red", "blue", "on", "the", "moon", "house", "and"]


def saved(folder, model, tokenizer, processing):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    return folder


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("blip")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join([*marks, *WORDS]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    text = {**sizes, "vocab_size": len(marks) + len(WORDS), "encoder_hidden_size": 16,
            "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
            "max_position_embeddings": 64, "projection_dim": 16}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32,
                        "patch_size": 8}, projection_dim=16, image_text_hidden_size=16)  # fmt: skip
    torch.manual_seed(1)
    return saved(folder, BlipForConditionalGeneration(config).eval(), tokenizer, BLIP)


BLIP = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.27, 0.26, 0.28],
}


@pytest.fixture(scope="module")
def florence_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Florence2Config,
        Florence2ForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("florence")
    asked = {word for text in ASKED.values() for word in text.replace("?", "").split()}
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    vocab = {word: i for i, word in enumerate([*marks, *sorted(asked | {*WORDS, "."}), "?"])}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), marks, strict=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, **names, extra_special_tokens=["<image>"]
    )
    text = {"model_type": "bart", "vocab_size": len(vocab), "d_model": 16, "encoder_layers": 1,
            "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
            "decoder_start_token_id": 2, "forced_eos_token_id": 2}  # fmt: skip
    vision = {"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2),
              "num_groups": (1, 1, 2, 2), "projection_dim": 16, "window_size": 4}  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    torch.manual_seed(1)
    model = Florence2ForConditionalGeneration(config).eval()
    return saved(folder, model, tokenizer, FLORENCE)


FLORENCE = {"size": {"height": 64, "width": 64}, "resample": 3, "do_center_crop": False}


def picture(seed):
    noise = torch.randint(0, 256, (6, 5, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.byte().numpy()).resize((50, 44), Image.Resampling.BICUBIC)


def pixels_of(processing, images):
    """What transformers' own processor makes of pictures."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    mean = processing.get("image_mean", [0.5] * 3)
    std = processing.get("image_std", [0.5] * 3)
    processor = BlipImageProcessorPil(size=processing["size"], image_mean=mean, image_std=std)
    return processor(images, return_tensors="pt").pixel_values


@pytest.fixture(scope="module")
def two():
    return [picture(1), picture(2)]


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_blip_says_what_transformers_says(blip_folder, two, prompt):
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    said = Blip(model=blip_folder, prompt=prompt, max_tokens=6).captions(two, "cpu")
    net = BlipForConditionalGeneration.from_pretrained(blip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(blip_folder)
    given = tokenizer([prompt] * 2, return_tensors="pt") if prompt else {}
    given = {k: v for k, v in given.items() if k != "token_type_ids"}
    ids = net.generate(
        pixel_values=pixels_of(BLIP, two), **given, num_beams=3, do_sample=False, max_new_tokens=6
    )
    theirs = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert list(said) == theirs
    assert all(said)
    assert all(text.startswith(prompt) for text in said)


@pytest.mark.parametrize("detail", ["sentence", "paragraph"])
def test_florence_says_what_transformers_says(florence_folder, two, detail):
    from transformers import AutoTokenizer, Florence2ForConditionalGeneration

    made = Florence2(model=florence_folder, detail=detail, max_tokens=5)
    said = made.captions(two, "cpu")
    net = Florence2ForConditionalGeneration.from_pretrained(florence_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(florence_folder)
    # 64 pixels in four strides of 4, 2, 2, 2: four cells, and their mean beside them.
    places = net.get_image_features(pixels_of(FLORENCE, two)).pooler_output.shape[1]
    text = "<image>" * places + "<s>" + ASKED[detail] + "</s>"
    tokens = tokenizer([text.replace("<image>", " <image> ")] * 2, return_tensors="pt")
    ids = net.generate(
        pixel_values=pixels_of(FLORENCE, two),
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        num_beams=3,
        do_sample=False,
        max_new_tokens=5,
    )
    theirs = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert list(said) == theirs


class TestBlip(CaptionerConformance):
    @pytest.fixture
    def made(self, blip_folder):
        return Blip(model=blip_folder, max_tokens=6)

    def make(self, pictures):
        raise AssertionError("the fixture makes it")


class TestFlorence2(CaptionerConformance):
    @pytest.fixture
    def made(self, florence_folder):
        return Florence2(model=florence_folder, max_tokens=6)

    def make(self, pictures):
        raise AssertionError("the fixture makes it")


def test_a_folder_that_is_none_of_theirs_is_told(blip_folder, tmp_path):
    with pytest.raises(JobError, match=r'--captions florence2: .* a model of type "blip"'):
        named("captions", "florence2", blip_folder)
    with pytest.raises(JobError, match="there is no folder"):
        named("captions", "blip", tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=r"no config\.json that can be read"):
        named("captions", "blip", tmp_path / "empty")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(JobError, match=r"has no \.safetensors file"):
        named("captions", "blip", tmp_path / "pickled")


def test_options_are_checked_as_in_a_job(blip_folder):
    made = named("captions", f"{{kind: blip, model: {blip_folder}, prompt: a photo of}}")
    assert made == Blip(model=blip_folder, prompt="a photo of")
    with pytest.raises(JobError, match=r"--captions .*beems.*did you mean \"beams\""):
        named("captions", f"{{kind: blip, model: {blip_folder}, beems: 2}}")
    with pytest.raises(JobError, match=r'unknown captioner kind "blipp".*did you mean "blip"'):
        named("captions", "blipp", blip_folder)
    with pytest.raises(JobError, match='--captions blip: needs "model"'):
        named("captions", "blip")
