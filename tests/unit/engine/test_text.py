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

    def release(self, part):
        pass

    def encodes_apart(self):
        return True

    @property
    def parts(self):
        return {"text_encoder": torch.nn.Linear(1, 1)}

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
        residency = SimpleNamespace(keeps_texts=True, parts={}, enter=lambda *_: None)
        text.settle(ctx, model, [], residency)

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


def test_texts_beyond_the_room_are_read_when_they_are_asked_for(settle, monkeypatch):
    prompts = [f"a dog {i}" for i in range(100)]
    model = Encoder(True)
    one = text.size_of(model.tensors(prompts[0]))
    monkeypatch.setattr(text, "HELD", 3 * one)
    settle(model, prompts)
    shelf = model.embeddings[prompts[0]]._read.func.__self__
    for prompt in [*prompts, *reversed(prompts)]:
        tensors = model.embeddings[prompt].tensors
        assert torch.equal(tensors["embeds"], model.tensors(prompt)["embeds"])
        assert len(shelf._held) <= 3
    assert len(model.asked) == 100, "each was encoded once"
    assert not any(store._open for store in shelf._stores.values()), "no chunk stays in memory"


def test_a_damaged_file_of_texts_is_found_at_its_first_reading_and_made_again(settle, tmp_path):
    prompts = [f"a dog {i}" for i in range(3)]
    settle(Encoder(True), prompts)
    [file] = (tmp_path / "cache").rglob("chunk-*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 255
    file.write_bytes(data)
    again = Encoder(True)
    settle(again, prompts)
    for prompt in prompts:
        found = again.embeddings[prompt].tensors["pooled"]
        assert torch.equal(found, again.tensors(prompt)["pooled"])
    assert len(again.asked) == 3
