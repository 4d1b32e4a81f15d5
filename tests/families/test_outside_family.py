"""Sana as a package of its own, in under 100 lines: it passes the suite of a family, and trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from dreambooth.testing import FamilyConformance, Trainer, check_family

PACKAGE = Path(__file__).parents[1] / "data" / "plugins" / "sana-family"


def tokenizer():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127)), "\n"]
    found = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    found.model_max_length = 4096
    return found


@pytest.fixture
def folder(tmp_path):
    """A tiny Sana with the scheduler published ones have."""
    text = Gemma2Config(
        vocab_size=len(tokenizer()), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=4, attn_implementation="eager",
    )  # fmt: skip
    net = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8, sample_size=16,
    )  # fmt: skip
    blocks = ("ResBlock", "ResBlock")
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
        decoder_block_types=blocks, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle", scaling_factor=0.41407,
    )  # fmt: skip
    solver = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    where = tmp_path / "sana"
    SanaPipeline(
        tokenizer(), tiny.filled(Gemma2Model(text), "gemma"), tiny.filled(vae, "dc"),
        tiny.filled(net, "sana"), solver,
    ).save_pretrained(where)  # fmt: skip
    return where


@pytest.fixture
def sana(monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE)
    from sana_family import plugin

    yield plugin
    for name in [n for n in sys.modules if n.split(".")[0] == "sana_family"]:
        del sys.modules[name]


def test_it_is_under_100_lines():
    files = sorted(PACKAGE.rglob("*.py"))
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert 0 < lines < 100


@pytest.mark.slow
def test_it_passes_the_suite_of_a_family(sana, folder, tmp_path):
    check_family(sana.Sana(source=str(folder)), tmp_path / "suite")


def test_a_fault_of_it_is_seen(sana, folder, tmp_path, monkeypatch):
    from sana_family.loaded import LoadedSana

    whole = LoadedSana.denoise
    monkeypatch.setattr(LoadedSana, "denoise", lambda self, z, t, c: whole(self, z, t / 1000, c))
    made, suite = sana.Sana(source=str(folder)), FamilyConformance()
    with pytest.raises(AssertionError, match="a unit of time"):
        suite.test_it_predicts_what_diffusers_predicts(made, Trainer(tmp_path / "suite"))
