"""The torch-free tokenizer splits exactly as transformers' does."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth.errors import JobError
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
from dreambooth_plugins.model.folder.vocabulary import read_vocabulary, shipped_vocabulary

TEXTS = [
    "a photo of sks dog", "ohwx", "zwx", "xxy5syt00", "<my-dog>", "don't we'll it's 'tis",
    "Crème Brûlée", "naïve œuvre", "犬と猫", "🦊 fox!!", "a_b__c", "x²y ½ Ⅷ", "42nd street",
    "two  spaces\tand\nlines", "", " ", "...!?'s", "'", "ß İ ǅ", "e\u0301cole", "<|endoftext|>",
]  # fmt: skip


@cache
def both():
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    return shipped_vocabulary(), CLIPTokenizer(vocab=vocabulary, merges=merges)


@pytest.fixture
def ours():
    return both()[0]


@pytest.fixture
def theirs():
    return both()[1]


def same(ours, theirs, text):
    """Compare pieces: their tokens are byte stand-ins, ours read as text."""
    expected = [theirs.decode([i]) for i in theirs(text, add_special_tokens=False).input_ids]
    got = ours.split(text)
    assert [p.replace(" ", "") for p in got] == [p.replace(" ", "") for p in expected], text


@pytest.mark.parametrize("text", TEXTS)
def test_it_splits_as_transformers_does(ours, theirs, text):
    same(ours, theirs, text)


ANY = st.characters(
    min_codepoint=32,
    max_codepoint=0x2FFF,
    # What normalisation and white space do to these is no business of identifiers.
    exclude_categories=("Cs", "Cn", "Co", "Cc", "Mn", "Zs"),
)


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(ANY))
def test_it_splits_any_text_as_transformers_does(text):
    same(*both(), text)


def test_short_words_are_one_token_or_not_as_transformers_says(ours, theirs):
    letters = "abcdefghijklmnopqrstuvwxyz"
    rng = random.Random(0)
    words = ["".join(rng.choices(letters, k=3)) for _ in range(400)]
    for word in words:
        assert len(ours.split(word)) == len(theirs(word, add_special_tokens=False).input_ids)


def test_rarity_follows_the_order_of_merges(ours):
    words = ours.words()
    assert words["the"] < words["dog"] < words["octopus"] < words["sks"] <= 1.0
    assert ours.has("dog")
    assert ours.has("<|endoftext|>")
    assert not ours.has("<my-dog>")


def test_every_way_to_store_a_vocabulary_reads_the_same(tiny_model, tmp_path):
    files = ("tokenizer.json", "vocab.json", "merges.txt")
    whole = read_vocabulary(tiny_model / "tokenizer")
    for kept in (files[:1], files[1:]):
        folder = tmp_path / kept[0]
        folder.mkdir()
        for name in kept:
            shutil.copy(tiny_model / "tokenizer" / name, folder / name)
        found = read_vocabulary(folder)
        assert found.words() == whole.words()
        for text in TEXTS:
            assert found.split(text) == whole.split(text)
    with pytest.raises(JobError, match="no vocabulary"):
        read_vocabulary(tmp_path)


def test_learned_words_are_tokens_of_their_own(tiny_model, tmp_path, ctx):
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    model.add_tokens("<my-dog>", 2, "a")
    model.save(tmp_path, model.info.schedule)
    found = StableDiffusion(source=str(tmp_path)).vocabulary()
    assert found.split("a <my-dog> x") == ["a", "<my-dog>", "x"]
    assert found.has("<my-dog>_1")


def test_each_kind_of_source_has_its_vocabulary(tiny_model, tmp_path):
    tiny = StableDiffusion(source="builtin:tiny").vocabulary()
    stored = StableDiffusion(source=str(tiny_model)).vocabulary()
    assert tiny.words() == stored.words()
    emoji = StableDiffusion(source="builtin:emoji-64").vocabulary()
    assert emoji.split("ohwx fox") == ["o", "h", "w", "x", "fox"]
    ids = json.loads((tiny_model / "tokenizer/vocab.json").read_text())
    assert set(tiny.words()) == {t[:-4] for t in ids if t.endswith("</w>") and t[:-4].isascii()
                                 and t[:-4].isalpha()}  # fmt: skip
