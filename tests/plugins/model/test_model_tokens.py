"""New tokens: rows of their own behind an untouched table, read the same everywhere."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.errors import JobError, RunError
from dreambooth_plugins.formats.embedding import token_names
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.folder.tokens import with_all_tokens

NAME = "<my-dog>"
PROMPTS = [f"a photo of {NAME} dog", "a dog", "", f"{NAME}", f"two {NAME}, one {NAME}!"]
TABLE = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def model(tiny_model, ctx):
    return StableDiffusion(source=str(tiny_model)).open(ctx)


def learned(model, count, words="dog"):
    """Add tokens and move their rows, as training would."""
    [(name, rows)] = model.add_tokens(NAME, count, words).items()
    with torch.no_grad():
        rows.add_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(7)))
    assert name == "text_encoder.embeddings.token_embedding.new_rows"
    return rows


@torch.no_grad()
def embeddings(model, prompts):
    return torch.stack([c.tensors["embeds"] for c in model.encode_prompts(prompts)])


@torch.no_grad()
def plain(folder, rows, prompts):
    """The same with transformers' own resized table and diffusers' own reading of prompts."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    names = [NAME, *(f"{NAME}_{i}" for i in range(1, len(rows)))]
    tokenizer.add_tokens(names)
    encoder.resize_token_embeddings(len(tokenizer))
    table = encoder.get_input_embeddings().weight
    for name, row in zip(names, rows, strict=True):
        table[tokenizer.convert_tokens_to_ids(name)] = row
    converted = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, tokenizer)
    ids = tokenizer(
        converted, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return encoder(ids)[0]


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_mean_what_plain_libraries_make_of_them(model, tiny_model, count):
    rows = learned(model, count)
    torch.testing.assert_close(
        embeddings(model, PROMPTS), plain(tiny_model, rows.detach(), PROMPTS), rtol=0, atol=1e-6
    )


def test_prompts_without_the_word_are_the_bases_to_the_bit(model, tiny_model, ctx):
    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    learned(model, 2)
    assert torch.equal(embeddings(model, ["a dog", ""]), embeddings(base, ["a dog", ""]))
    table = model.parts["text_encoder"].get_input_embeddings().weight
    assert torch.equal(table, base.parts["text_encoder"].get_input_embeddings().weight)


def test_gradients_reach_the_new_rows_alone(model):
    learned(model, 2)
    model.parts["text_encoder"].requires_grad_(True)
    table = model.parts["text_encoder"].get_input_embeddings()
    table.weight.requires_grad_(False)
    [cond] = model.encode_prompts([f"a {NAME}"])
    cond.tensors["embeds"].square().sum().backward()
    assert (table.new_rows.grad.abs().sum(1) > 0).all()
    assert table.weight.grad is None


@pytest.mark.parametrize(
    ("words", "count", "expected"),
    [
        ("a", 1, ["a"]),
        ("a photo", 2, ["a", "photo"]),
        ("a photo", 3, ["a", "photo", "a"]),
        ("a photo of", 1, [("a", "photo", "of")]),
        ("a photo of", 2, ["a", ("photo", "of")]),
    ],
)
def test_rows_begin_as_the_words(model, words, count, expected):
    table = model.parts["text_encoder"].get_input_embeddings().weight.detach().clone()

    def row(word):
        if isinstance(word, tuple):
            return torch.stack([row(w) for w in word]).mean(0)
        [number] = model.tokenizer(word, add_special_tokens=False).input_ids
        return table[number]

    wanted = torch.stack([row(word) for word in expected])
    [rows] = model.add_tokens(NAME, count, words).values()
    torch.testing.assert_close(rows.detach(), wanted)
    assert rows.dtype == torch.float32


def test_without_tokens_the_word_is_text(model, tiny_model, ctx):
    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    early = model.frozen_copy()
    learned(model, 2)
    text = embeddings(base, PROMPTS)
    assert not torch.equal(embeddings(model, PROMPTS), text)
    with model.without_tokens():
        assert torch.equal(embeddings(model, PROMPTS), text)
    assert not torch.equal(embeddings(model, PROMPTS), text)
    assert torch.equal(embeddings(early, PROMPTS), text)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a", "is a token of this model"), ("photo", "is a token"), ("<My-Dog>", "lower case"),
     ("my dog", "without spaces")],
)  # fmt: skip
def test_names_that_cannot_be_tokens_are_refused(model, name, said):
    with pytest.raises(JobError) as refused:
        model.add_tokens(name, 1, "a")
    assert said in refused.value.message + refused.value.hint


def test_a_model_with_learned_tokens_takes_no_second_word_of_the_same_name(model, tmp_path, ctx):
    learned(model, 2)
    model.save(tmp_path, model.info.schedule)
    again = StableDiffusion(source=str(tmp_path)).open(ctx)
    with pytest.raises(JobError, match="is a token of this model"):
        again.add_tokens(NAME, 1, "a")
    [rows] = again.add_tokens("<other>", 1, NAME).values()  # and may begin as a learned word
    assert torch.equal(rows[0], again.parts["text_encoder"].get_input_embeddings().weight[-2])


def test_a_tokenizer_of_another_model_is_noticed(model, monkeypatch):
    model.tokenizer.add_tokens(["<stray>"])
    with pytest.raises(RunError, match="no row of its own"):
        model.add_tokens(NAME, 1, "a")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_saved_model_reads_the_word_in_any_tool(model, tiny_model, tmp_path, ctx, dtype):
    rows = learned(model, 2).detach()
    model.save(tmp_path, model.info.schedule, dtype=dtype)
    cast = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    stored = load_file(tmp_path / "text_encoder/model.safetensors")[TABLE]
    before = load_file(tiny_model / "text_encoder/model.safetensors")[TABLE]
    assert torch.equal(stored[:-2], before.to(cast))
    assert torch.equal(stored[-2:], rows.to(cast))
    config = json.loads((tmp_path / "text_encoder/config.json").read_text())
    assert config["vocab_size"] == len(stored)
    added = json.loads((tmp_path / "tokenizer/added_tokens.json").read_text())
    assert added == {NAME: len(before), f"{NAME}_1": len(before) + 1}

    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).eval()
    converted = TextualInversionLoaderMixin().maybe_convert_prompt(PROMPTS, tokenizer)
    ids = tokenizer(converted, padding="max_length", max_length=77, return_tensors="pt").input_ids
    reopened = StableDiffusion(source=str(tmp_path)).open(ctx)
    with torch.no_grad():
        there = encoder(ids)[0]
    assert torch.equal(embeddings(reopened, PROMPTS), there)
    if dtype == "fp32":
        torch.testing.assert_close(embeddings(model, PROMPTS), there, rtol=0, atol=1e-6)


def test_averaged_rows_are_what_is_written(model, tmp_path):
    rows = learned(model, 1).detach()
    name = "text_encoder.embeddings.token_embedding.new_rows"
    model.save(tmp_path, model.info.schedule, {name: rows * 0.5})
    stored = load_file(tmp_path / "text_encoder/model.safetensors")[TABLE]
    assert torch.equal(stored[-1:], rows * 0.5)


def test_half_precision_and_shapes_alone(tiny_model, make_ctx):
    half = StableDiffusion(source=str(tiny_model)).open(make_ctx(dtype=torch.bfloat16))
    [rows] = half.add_tokens(NAME, 2, "a").values()
    assert rows.dtype == torch.float32
    assert half.parts["text_encoder"].get_input_embeddings().weight.dtype == torch.bfloat16
    assert embeddings(half, PROMPTS).isfinite().all()
    shapes = StableDiffusion(source=str(tiny_model)).open(make_ctx(device="meta"))
    [rows] = shapes.add_tokens(NAME, 2, "a").values()
    assert (rows.shape, rows.device.type) == ((2, 32), "meta")
    assert embeddings(shapes, PROMPTS).shape == (5, 77, 32)


@pytest.mark.parametrize("name", ["zwx", "<zwx>"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("written", "plain_form"),
    [
        ("a {n} dog", "a {n} dog"), ("a {N} dog", "a {n} dog"), ("{N}, a dog", "{n} , a dog"),
        ("a dog ({n})", "a dog ( {n} )"), ("{n} and {N}", "{n} and {n}"),
    ],
)  # fmt: skip
def test_every_row_of_a_word_is_used_in_any_case(model, name, count, written, plain_form):
    model.add_tokens(name, count, "dog")
    wanted = plain_form.format(n=" ".join(token_names(name, count)))
    found = with_all_tokens(model.tokenizer, written.format(n=name, N=name.upper()))
    assert model.tokenizer.tokenize(found) == model.tokenizer.tokenize(wanted)
    assert model.tokenizer.tokenize(found).count(token_names(name, count)[-1]) == max(
        1, written.count("{n}") + written.count("{N}")
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("other", ["zwxy", "azwx", "ZWXY", "zwx1", "zwx_2x"])
def test_a_longer_word_is_another_word(model, tiny_model, ctx, count, other):
    base = StableDiffusion(source=str(tiny_model)).open(ctx)
    model.add_tokens("zwx", count, "dog")
    assert with_all_tokens(model.tokenizer, f"a {other} dog") == f"a {other} dog"
    assert torch.equal(embeddings(model, [f"a {other} dog"]), embeddings(base, [f"a {other} dog"]))
