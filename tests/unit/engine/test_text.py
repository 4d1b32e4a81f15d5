"""Text embeddings in the store: each prompt's own, many to a file."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from dreambooth.engine.cache import store as cache
from dreambooth.engine.data import text
from dreambooth.interfaces import Conditioning


class Encoder:
    """A model whose embeddings have the length of their prompt (no padding), or one for all."""

    def __init__(self, padded):
        self.padded, self.asked = padded, []
        self.embeddings, self.text_is_frozen, self.base = {}, True, None
        self.info = SimpleNamespace(part_names=lambda *_: ("text_encoder",))

    def fingerprint(self, part):
        return "padded" if self.padded else "ragged"

    def loaded(self):
        return ()

    def encode_prompts(self, prompts):
        self.asked.append(list(prompts))
        return [Conditioning(self.tensors(prompt)) for prompt in prompts]

    def tensors(self, prompt):
        length = 77 if self.padded else len(prompt)
        value = float(int(prompt.split()[-1]))
        return {"embeds": torch.full((length, 4), value), "pooled": torch.full((4,), value)}


@pytest.fixture
def settle(make_ctx, monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))

    def call(model, prompts):
        ctx = make_ctx(job=SimpleNamespace(train=SimpleNamespace(cache=True)))
        ctx.precision = SimpleNamespace(name="fp32")
        monkeypatch.setattr(text, "run_prompts", lambda *_: prompts)
        text.settle(ctx, model, [], SimpleNamespace(keeps_texts=True))

    return call


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "ragged"])
def test_many_prompts_share_a_file_and_each_keeps_its_own(
    settle, tmp_path, monkeypatch, emit, padded
):
    swept, sweep = [], cache.sweep
    monkeypatch.setattr(cache, "sweep", lambda *a, **k: swept.append(a) or sweep(*a, **k))
    prompts = [f"a dog {i}" for i in range(1000)]
    model = Encoder(padded)
    began = time.monotonic()
    settle(model, prompts)
    emit("1,000 prompts, seconds", round(time.monotonic() - began, 2))
    assert len(list((tmp_path / "cache").rglob("chunk-*"))) == 16
    assert len(swept) == 1
    # Alone, so that an embedding depends on nothing but its text.
    assert model.asked == [[prompt] for prompt in prompts]
    again = Encoder(padded)
    settle(again, prompts)
    assert again.asked == []
    for found in (model.embeddings, again.embeddings):
        for prompt in prompts:
            expected = model.tensors(prompt)
            assert found[prompt].tensors.keys() == expected.keys()
            assert all(torch.equal(found[prompt].tensors[k], v) for k, v in expected.items())
