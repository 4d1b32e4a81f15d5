"""Jobs whose policy learns a word: what is wrong with them, and embeddings to begin with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from test_freezing_word import ROWS, SUBJECT, TOKEN_FIRST, WORD, prepared

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import learns_word, settled
from dreambooth_plugins.freezing import Pivotal, Token

__all__ = ["prepared"]


# Somebody's embedding


def embedding(path, values, name="<theirs>"):
    save_file({name: values}, path)
    return path


@pytest.mark.parametrize("name", ["<theirs>", "emb_params"])
@pytest.mark.parametrize("policy", [Token, Pivotal])
def test_rows_of_a_file_go_on_training(prepared, tmp_path, name, policy):
    values = torch.randn((2, 32), generator=torch.Generator().manual_seed(4))
    file = embedding(tmp_path / "learned_embeds.safetensors", values, name)
    for given in (file, tmp_path):
        _, parameters = prepared(policy(vectors=2, embedding=given))
        assert torch.equal(parameters[ROWS].detach(), values)
    assert prepared(Token(vectors=2, embedding=file), device="meta")[1][ROWS].shape == (2, 32)


def test_a_single_row_may_lie_flat(prepared, tmp_path):
    values = torch.arange(32.0)
    _, parameters = prepared(Token(embedding=embedding(tmp_path / "e.safetensors", values)))
    assert torch.equal(parameters[ROWS].detach(), values[None])


def test_an_embedding_of_another_model_is_refused(prepared, tmp_path):
    file = embedding(tmp_path / "e.safetensors", torch.zeros(1, 768))
    with pytest.raises(JobError, match=r"1 rows of width 768, .* has 1 of 32"):
        prepared(Token(embedding=file))


def test_a_policy_begins_with_what_was_written(tmp_path):
    assert Token().at(tmp_path) is None
    assert Pivotal().at(tmp_path) is None
    embedding(tmp_path / "learned_embeds.safetensors", torch.zeros(1, 32))
    assert Token(vectors=1).at(tmp_path) == Token(embedding=tmp_path)
    assert Pivotal(train=["unet"]).at(tmp_path) == Pivotal(embedding=tmp_path, init=tmp_path)


# What is wrong with a job


def problems(job, field="freezing"):
    return [p for p in preflight(job) if p.at[0] in (field, "subject")]


@pytest.mark.parametrize("kind", ["token", "pivotal"])
@pytest.mark.parametrize(
    ("identifier", "message", "hint"),
    [
        ("photo", "is a token of this model already", "<photo>, or identifier: auto"),
        ("<My-Dog>", "cannot be one token", "<my-dog>"),
        ("my dog", "cannot be one token", "<my-dog>"),
    ],
)
def test_identifiers_that_cannot_get_a_row(small_job, kind, identifier, message, hint):
    job = small_job(freezing=kind, subject={"identifier": identifier, "class_noun": "dog"})
    [problem] = problems(job)
    assert problem.at == ("subject", "identifier")
    assert message in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize("identifier", [WORD, "ohwx", "auto"])
def test_identifiers_that_can(small_job, identifier):
    job = small_job(freezing="token", subject={"identifier": identifier, "class_noun": "dog"})
    assert problems(job) == []
    assert learns_word(job)
    assert settled(job).subject.identifier == (WORD if identifier == "auto" else identifier)


def test_files_that_are_no_embedding_are_problems(small_job, tmp_path):
    save_file({"a": torch.zeros(1, 32), "b": torch.zeros(1, 32)}, tmp_path / "two.safetensors")
    embedding(tmp_path / "rows.safetensors", torch.zeros(3, 32))
    (tmp_path / "code.bin").write_bytes(b"\x80\x04")
    for name, at, message in (
        ("none.safetensors", "embedding", "there is no file"),
        ("code.bin", "embedding", "not a .safetensors file"),
        ("two.safetensors", "embedding", "2 tensors"),
        ("rows.safetensors", "vectors", "has 3 rows, and 1 are to be trained"),
    ):
        job = small_job(freezing={"kind": "token", "embedding": tmp_path / name}, subject=SUBJECT)
        [problem] = problems(job)
        assert problem.at == ("freezing", at)
        assert message in problem.message


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({"lr": {"text_encoder": 1e-3}}, ("lr", "text_encoder"), "not a part that trains"),
        ({"until": {"token": 2}, "start": {"unet": 3}}, ("until",), "nothing would train"),
        ({"start": {"token": 9}}, ("start", "token"), '"token" would never train'),
    ],
)
def test_times_and_rates_of_a_token_are_checked(small_job, options, at, message):
    [problem] = problems(small_job(freezing={"kind": "pivotal", **options}, subject=SUBJECT))
    assert problem.at == ("freezing", *at)
    assert message in problem.message


def test_a_model_without_a_text_encoder_learns_no_word(small_job):
    info = SimpleNamespace(part_names=lambda *_: (), learns_words=(), no_words="")
    [problem] = Token().check(small_job(subject=SUBJECT, freezing="token"), info)
    assert "no text encoder" in problem.message


def test_the_plan_says_what_the_word_is(small_job):
    job = small_job(
        subject=SUBJECT,
        freezing={**TOKEN_FIRST, "vectors": 2, "words": "brown dog"},
        optimizer={"lr": 1e-5},
    )
    plan = make_plan(job, Quiet())
    assert plan.notes[0] == f'{WORD}: 2 token rows, beginning as "brown dog"'
    assert plan.notes[-2:] == ("steps 1 to 2: token", "steps 3 to 4: unet")
    trained = {part.name: part.trainable for part in plan.parts}
    assert trained["text_encoder"] == 2 * 32
    [_, low] = make_plan(small_job(subject=SUBJECT, freezing="token",
                                   optimizer={"lr": 1e-5}), Quiet()).notes  # fmt: skip
    assert low == "token rows want a learning rate of about 5e-3, and have 1e-05"
