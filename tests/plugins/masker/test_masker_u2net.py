"""U2-Net is given what it was trained with, and its answer is a mask of the picture's size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import JobError, RunError
from dreambooth.jobs.named import named
from dreambooth.testing import MaskerConformance
from dreambooth_plugins.masker.u2net import U2Net
from onnx_files import write_mean_of_channels

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra masks)")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network whose mask is the mean of the channels it is given."""
    return write_mean_of_channels(tmp_path_factory.mktemp("u2net") / "mean.onnx")


class TestU2Net(MaskerConformance):
    def make(self, pictures: Path) -> U2Net:
        return U2Net(model=write_mean_of_channels(pictures.parent / "mean.onnx"))


def painted(size, light=(250, 200, 90)):
    image = Image.new("RGB", size, (20, 30, 40))
    width, height = size
    image.paste(light, (width // 4, height // 4, width // 2, height // 2))
    return image


def by_hand(image):
    """The formula, with numpy: squeeze, divide by the largest, normalise, stretch, and back."""
    square = np.asarray(image.resize((320, 320), Image.Resampling.LANCZOS)) / 255.0
    square = square / square.max()
    scaled = (square - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    answer = scaled.mean(-1) ** 2
    answer = (answer - answer.min()) / (answer.max() - answer.min())
    mask = Image.fromarray(answer.astype(np.float32))
    return np.asarray(mask.resize(image.size, Image.Resampling.BILINEAR))


def test_masks_follow_the_formula_at_each_pictures_size(network):
    images = [painted((64, 48), (140, 110, 60)), painted((400, 700), (60, 120, 130))]
    masks = U2Net(model=network).masks(images, "cpu")
    for image, mask in zip(images, masks, strict=True):
        assert mask.shape == (image.height, image.width)
        assert np.abs(mask - by_hand(image)).max() < 1e-5


def test_a_picture_of_one_colour_has_no_subject(network):
    flat = [Image.new("RGB", (40, 30), "black"), Image.new("RGB", (40, 30), "white")]
    for mask in U2Net(model=network).masks(flat, "cpu"):
        assert mask.shape == (30, 40)
        assert not mask.any()


def test_another_network_is_told(tmp_path):
    other = write_mean_of_channels(tmp_path / "other.onnx", keep_channels=True)
    with pytest.raises(RunError, match=r"answers with \[1, 3, 320, 320\]") as caught:
        U2Net(model=other).masks([painted((40, 40))], "cpu")
    assert "no U2-Net" in caught.value.hint


def test_a_file_that_is_no_network_is_told(tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(RunError, match="is no ONNX file that can be read"):
        U2Net(model=tmp_path / "text.onnx").masks([painted((40, 40))], "cpu")


def test_what_is_missing_is_told_before_anything_is_asked(tmp_path, monkeypatch, network):
    with pytest.raises(JobError, match=r"--masks u2net: there is no file .*gone\.onnx"):
        named("masks", "u2net", tmp_path / "gone.onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "dreambooth_plugins.common.extras.find_spec",
        lambda name: None if name == "onnxruntime" else found(name),
    )
    with pytest.raises(JobError, match="onnxruntime is not installed") as caught:
        named("masks", "u2net", network)
    assert caught.value.hint == "pip install 'dreambooth-trainer[masks]'"
