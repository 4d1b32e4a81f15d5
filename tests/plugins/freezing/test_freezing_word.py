"""Policies that learn a word: rows of its own, alone (`token`) or with an adapter (`pivotal`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.draw import DrawRequest, draw_from_run
from dreambooth.engine.step import train_step
from dreambooth.errors import RunError
from dreambooth_plugins.freezing import Adapter, Pivotal, Token
from dreambooth_plugins.model import StableDiffusion
from learning import shake, tensors
from test_run import cut, lines

WORD = "<my-dog>"
ROWS = "text_encoder.embeddings.token_embedding.new_rows"
TABLE = "text_encoder.embeddings.token_embedding.weight"
SUBJECT = {"identifier": WORD, "class_noun": "dog"}
TOKEN_FIRST = {
    "kind": "pivotal",
    "lr": {"token": 5e-3, "unet": 1e-3},
    "until": {"token": 2},
    "start": {"unet": 2},
}


@pytest.fixture
def prepared(make_ctx, small_job):
    """Prepare the tiny model: `prepared(Token(vectors=2))` returns it and what trains."""

    def make(policy, **options):
        ctx = make_ctx(job=small_job(subject=SUBJECT), **options)
        model = StableDiffusion(source="builtin:tiny").open(ctx)
        policy.prepare(model, ctx)
        return model, dict(policy.trainable(model))

    return make


def table_rows(model, *words):
    """Return the rows of single-token words in the base's table."""
    table = tensors(model)[TABLE].detach()
    ids = [model.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    assert all(len(i) == 1 for i in ids)
    return torch.stack([table[i[0]] for i in ids])


def test_a_token_trains_its_rows_and_nothing_else(prepared):
    model, parameters = prepared(Token(vectors=2, words="a photo"))
    assert set(parameters) == {ROWS}
    assert torch.equal(parameters[ROWS].detach(), table_rows(model, "a", "photo"))
    assert Token().trained_parts(model.info) == ("text_encoder",)


def test_without_words_a_token_begins_as_the_class_noun(prepared):
    model, parameters = prepared(Token())
    noun = model.tokenizer("dog", add_special_tokens=False).input_ids
    mean = tensors(model)[TABLE][noun].float().mean(0, keepdim=True)
    torch.testing.assert_close(parameters[ROWS].detach(), mean.detach())


def test_a_pivotal_policy_trains_the_rows_and_the_adapter(prepared):
    policy = Pivotal(train=["unet"], vectors=3, method={"kind": "lora", "rank": 2})
    model, parameters = prepared(policy)
    adapter = Adapter(train=["unet"], method={"kind": "lora", "rank": 2})
    alone = prepared(adapter)[1]
    assert set(parameters) == {ROWS, *alone}
    assert parameters[ROWS].shape == (3, 32)
    # The adapter begins as it does without a word.
    assert all(torch.equal(parameters[n], p) for n, p in alone.items())
    assert policy.trained_parts(model.info) == ("unet", "text_encoder")


def test_an_adapter_on_the_text_encoder_leaves_the_table_alone(prepared):
    _, parameters = prepared(Pivotal(train=["text_encoder"], targets="all_linear"))
    assert not [n for n in parameters if "embedding" in n and n != ROWS]
    assert len(parameters) > 10


def groups_of(session):
    names = {id(p): n for n, p in session.state.parameters.items()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in session.state.optimizer.param_groups
        for p in group["params"]
    }


def test_rows_are_not_pulled_towards_zero_unless_asked(open_for):
    given = {"subject": SUBJECT, "optimizer": {"lr": 1e-3, "weight_decay": 0.1}, "prior": "none"}
    assert groups_of(open_for(freezing="token", **given)) == {ROWS: (1e-3, 0.0)}
    decayed = {"kind": "token", "weight_decay": 0.2}
    assert groups_of(open_for(freezing=decayed, **given)) == {ROWS: (1e-3, 0.2)}
    both = groups_of(open_for(freezing={"kind": "pivotal", "lr": {"token": 5e-3}}, **given))
    assert both.pop(ROWS) == (5e-3, 0.0)
    assert set(both.values()) == {(1e-3, 0.1)}
    decayed = {"kind": "pivotal", "weight_decay": {"token": 0.3, "unet": 0.0}}
    both = groups_of(open_for(freezing=decayed, **given))
    assert both.pop(ROWS) == (1e-3, 0.3)
    assert set(both.values()) == {(1e-3, 0.0)}


def moved_units(session):
    before = {n: p.detach().clone() for n, p in session.state.parameters.items()}
    train_step(session)
    moved = [n for n, p in session.state.parameters.items() if not torch.equal(p, before[n])]
    return {"token" if n == ROWS else n.split(".")[0] for n in moved}


def test_one_after_the_other(open_for):
    session = open_for(
        subject=SUBJECT, freezing=TOKEN_FIRST, prior="none", train={"steps": 4, "batch_size": 2}
    )
    assert moved_units(session) == moved_units(session) == {"token"}
    assert not session.model.text_is_frozen
    assert moved_units(session) == {"unet"}
    # No text encoder trains any more: texts are kept, those with the learned word as well.
    assert session.model.text_is_frozen
    prompt = f"picture 0 of {WORD} dog"
    kept = session.model.embeddings[prompt].tensors["embeds"]
    with torch.no_grad():
        [now] = session.model.encode_prompts([prompt])
    assert torch.equal(kept, now.tensors["embeds"])
    assert moved_units(session) == {"unet"}
    assert session.model.embeddings[prompt].tensors["embeds"] is kept


def test_together(open_for):
    session = open_for(subject=SUBJECT, freezing="pivotal", prior="none", train={"steps": 4})
    assert moved_units(session) == {"token", "unet"}


@torch.no_grad()
def predictions(model, prompts=(f"a {WORD} dog", "a dog")):
    z = torch.randn((len(prompts), 4, 8, 8), generator=torch.Generator().manual_seed(1))
    cond = model.collate(model.conditionings(list(prompts)))
    return model.denoise(z, torch.tensor([100, 700])[: len(prompts)], cond)


POLICIES = {
    "token": Token(vectors=2),
    "pivotal": Pivotal(train=["unet", "text_encoder"]),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_base_that_is_shown_is_the_base_to_the_bit(prepared, ctx, policy):
    expected = predictions(StableDiffusion(source="builtin:tiny").open(ctx))
    model, parameters = prepared(policy)
    shake(parameters)
    learned = predictions(model)
    assert not torch.equal(learned, expected)
    kept = model.embeddings
    with policy.showing_base(model):
        assert torch.equal(predictions(model), expected)
    assert model.embeddings is kept
    assert model.text_is_frozen
    assert torch.equal(predictions(model), learned)
    assert policy.base_hint() == ""


@pytest.mark.parametrize("kind", ["token", "pivotal"])
def test_losses_that_compare_with_the_base_need_no_copy(open_for, kind):
    session = open_for(
        subject=SUBJECT,
        freezing=kind,
        loss="self_distilled_prior",
        prior="mirror",
        optimizer={"lr": 1e-2},
    )
    priors = [float(train_step(session).loss_prior) for _ in range(3)]
    assert session.model.base is None
    assert abs(priors[0]) < 1e-9  # nothing is learned yet: the class prompt is the base's
    assert (priors[2] > 1e-9) == (kind == "pivotal")  # a token leaves other prompts alone for good


def test_what_an_artifact_says_of_the_word(prepared):
    model, parameters = prepared(Token(vectors=2))
    made = Token(vectors=2).artifact(model, parameters)
    names = {"tokens": {WORD: [WORD, f"{WORD}_1"]}}
    assert (made.kind, made.metadata, set(made.tensors)) == ("embedding", names, {ROWS})
    policy = Pivotal()
    model, parameters = prepared(policy)
    made = policy.artifact(model, parameters)
    assert made.kind == "adapter"
    assert made.metadata["tokens"] == {WORD: [WORD]}
    assert set(made.metadata["adapters"]) == {"unet"}
    assert set(made.tensors) == set(parameters)


def test_a_word_that_no_caption_says_is_noticed(small_job, pictures):
    for file in pictures.glob("*.txt"):
        file.write_text("a photo of a dog")
    with pytest.raises(RunError, match="nothing that should train has moved after step 4"):
        run(small_job(freezing="token", subject=SUBJECT, prior="none", exports=["merged"]))


def test_a_first_step_without_the_word_is_no_failure(small_job):
    job = small_job(
        freezing="token",
        subject=SUBJECT,
        prior="none",
        exports=["merged"],
        data={"caption_dropout": 0.9},
        train={"steps": 12},
    )
    result = run(job)
    norms = [line["train/grad_norm"] for line in lines(result.folder)]
    assert norms[0] == 0.0
    assert max(norms) > 0.0


def test_checkpointed_layers_give_a_word_the_same_gradients(open_for):
    rows = []
    for wanted in (False, True):
        session = open_for(
            freezing="token",
            subject=SUBJECT,
            prior="none",
            train={"gradient_checkpointing": wanted},
            optimizer={"lr": 1e-2},
        )
        for _ in range(2):
            train_step(session)
        rows.append(session.state.parameters[ROWS].detach())
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rows_of_a_half_precision_model_are_float32(open_for, precision):
    session = open_for(precision, freezing="token", subject=SUBJECT, prior="none")
    table = session.model.parts["text_encoder"].get_input_embeddings()
    train_step(session)
    assert table.weight.dtype != torch.float32
    [rows] = session.state.parameters.values()
    assert rows.dtype == torch.float32
    moments = session.state.optimizer.state[rows]
    assert {value.dtype for value in moments.values()} == {torch.float32}


def drawn(folder):
    request = DrawRequest([f"a photo of {WORD} dog"], count=1)
    done = draw_from_run(folder, request, Quiet())
    with Image.open(done.grid.parent / "000.png") as picture:
        return done.source, np.asarray(picture.convert("RGB"), dtype=np.int16)


def test_an_unfinished_run_draws_with_the_word_as_far_as_it_is_learned(small_job, monkeypatch):
    options = {
        "freezing": "token",
        "subject": SUBJECT,
        "prior": "none",
        "exports": ["merged"],
        "optimizer": {"lr": 3.0},
        "checkpoints": {"every": 2},
    }
    cut(job := small_job(name="cut", **options), 3, monkeypatch)
    one, from_checkpoint = drawn(job.folder)
    two, from_folder = drawn(run(small_job(name="two", train={"steps": 2}, **options)).folder)
    later, changed = drawn(run(job).folder)
    assert (one, two, later) == ("step-000002", "final", "final")
    assert np.abs(from_checkpoint - from_folder).max() <= 1
    assert np.abs(changed - from_folder).max() > 1


def test_a_pivotal_run_ends_in_a_model_that_knows_the_word(small_job):
    options = {"freezing": "pivotal", "optimizer": {"lr": 1e-2}, "exports": ["merged"]}
    result = run(small_job(subject=SUBJECT, **options))
    assert "merged" in result.checks[0]
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(result.final / "tokenizer")
    assert tokenizer.tokenize(f"a {WORD} dog")[1] == WORD


def test_a_word_and_whole_parts_end_in_a_model_that_knows_the_word(small_job):
    freezing = {"kind": "components_and_token", "train": ["unet", "text_encoder"], "vectors": 2,
                "lr": {"token": 1e-2}}  # fmt: skip
    result = run(small_job(subject=SUBJECT, freezing=freezing, exports=["diffusers"]))
    assert "weights equal" in result.checks[0]
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(result.final / "tokenizer")
    stem = f"{WORD}"
    assert tokenizer.tokenize(f"a {stem} {stem}_1 dog")[1:3] == [stem, f"{stem}_1"]
    checkpoint = load_file(result.folder / "checkpoints/step-000004/trainable.safetensors")
    rows = checkpoint["text_encoder.embeddings.token_embedding.new_rows"]
    table = load_file(result.final / "text_encoder/model.safetensors")[
        "text_model.embeddings.token_embedding.weight"
    ]
    assert torch.equal(table[-2:], rows)
    assert torch.equal(table[:-2], checkpoint["text_encoder.embeddings.token_embedding.weight"])
    assert drawn(result.folder)[0] == "final"
