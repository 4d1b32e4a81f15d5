"""Texts of a family of two encoders: one at a time, each under a key of its own, in its type."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from dreambooth.engine.cost.residency import Residency
from dreambooth_plugins.model.sdxl_loaded import LoadedSDXL

SDXL = {"kind": "sdxl", "source": "builtin:tiny-sdxl"}
UNET = {"kind": "components", "train": ["unet"]}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_encoder_keeps_its_own_texts_in_its_own_type(open_for, cache, precision):
    session = open_for(precision, model=SDXL, freezing=UNET, prior="none")
    model, entries = session.model, {}
    for file in cache.rglob("text/*/chunk-*"):
        with safe_open(file, "pt") as opened:
            entries[frozenset(opened.keys())] = {n: opened.get_tensor(n) for n in opened.keys()}
    first, second = entries[frozenset({"embeds"})], entries[frozenset({"embeds", "pooled"})]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {t.dtype for t in (*first.values(), *second.values())} == {dtype}
    assert (first["embeds"].shape[-1], second["embeds"].shape[-1]) == (32, 48)
    assert model.loaded() == ("unet",)
    for prompt, kept in model.embeddings.items():
        with torch.no_grad(), session.ctx.autocast():
            [fresh] = model.encode_prompts([prompt])
        assert kept.tensors.keys() == fresh.tensors.keys()
        for name, tensor in fresh.tensors.items():
            assert kept.tensors[name].dtype == torch.float32
            assert torch.equal(kept.tensors[name], tensor), (prompt, name)


def test_another_second_encoder_leaves_the_texts_of_the_first(open_for, cache, monkeypatch):
    asked = []
    encode = LoadedSDXL.encode_part

    def counted(self, part, prompts):
        asked.append(part)
        return encode(self, part, prompts)

    monkeypatch.setattr(LoadedSDXL, "encode_part", counted)
    options = {"model": SDXL, "freezing": UNET, "prior": "none"}
    open_for(**options)
    assert {*asked} == {"text_encoder", "text_encoder_2"}
    asked.clear()
    own = LoadedSDXL.fingerprint
    monkeypatch.setattr(
        LoadedSDXL,
        "fingerprint",
        lambda self, part: own(self, part) + "*" * (part == "text_encoder_2"),
    )
    open_for(**options)
    assert {*asked} == {"text_encoder_2"}


def test_the_encoders_come_and_go_before_anything_else(open_for, cache, monkeypatch):
    """Whatever the run can meet is encoded first: class prompt, negative, previews."""
    seen = []
    load, enter = LoadedSDXL._load, Residency.enter

    def loading(self, part):
        seen.append((part, self.loaded()))
        return load(self, part)

    def entering(self, phase, model):
        seen.append(phase)
        enter(self, phase, model)

    monkeypatch.setattr(LoadedSDXL, "_load", loading)
    monkeypatch.setattr(Residency, "enter", entering)
    open_for(
        model=SDXL,
        freezing=UNET,
        samples={"every": 2, "prompts": [{"prompt": "a {class_noun}", "negative": "grey"}]},
    )
    assert seen == [
        "texts", ("text_encoder", ()), ("text_encoder_2", ()),
        "encoding", ("vae", ()),
        "class images", ("unet", ()), ("vae", ()),
        "training", ("unet", ()), "training",
    ]  # fmt: skip
