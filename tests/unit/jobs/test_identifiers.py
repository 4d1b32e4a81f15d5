"""Identifiers: what is proposed, what is warned of, and what `auto` comes to."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from dreambooth.errors import JobError, RunError
from dreambooth.job import Job
from dreambooth.jobs import identifiers
from dreambooth.jobs.loading import check_job, dump_job
from dreambooth_plugins.model.folder.vocabulary import shipped_vocabulary


@pytest.fixture(scope="module")
def clip():
    return shipped_vocabulary()


def test_proposals_are_rare_short_words_of_one_token_that_are_no_words(clip):
    from transformers import CLIPTokenizer

    from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary

    vocabulary, merges = clip_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    words = identifiers.proposals(clip)
    assert len(words) > 200
    ranks = [vocabulary[f"{word}</w>"] for word in words]
    assert ranks == sorted(ranks, reverse=True)  # the rarest first
    assert ranks[-1] > len(vocabulary) / 2
    for word in words:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1
        assert 2 <= len(word) <= 3
        assert not set(word) & set("aeiouy")
    assert not {"sks", "pdf", "nfl", "rgb", "fck"} & set(words)


@pytest.mark.parametrize("source", ["builtin:tiny", "builtin:emoji-64"])
def test_small_vocabularies_have_proposals_too(source):
    from dreambooth_plugins.model import StableDiffusion

    vocabulary = StableDiffusion(source=source).vocabulary()
    words = identifiers.proposals(vocabulary)
    assert words
    assert all(vocabulary.split(word) == [word] for word in words)


def test_a_word_in_the_vocabulary_that_the_tokenizer_splits_is_not_proposed():
    split = {"xq": ["xq"], "zk": ["z", "k"]}
    made = SimpleNamespace(words=lambda: {"xq": 0.9, "zk": 0.95}, split=split.__getitem__)
    assert identifiers.proposals(made) == ["xq"]


def test_letters_are_the_last_resort():
    nothing = SimpleNamespace(words=dict, split=lambda text: list(text))
    assert identifiers.proposals(nothing)[:2] == ["q", "x"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sks", "rifle"),
        ("SKS", "rifle"),
        ("dog", "a word this model knows"),
        ("octopus", "a word"),
        ("bertie", "a word"),  # rare, but it can be spoken
        ("pdf", "a word"),
        ("xxy5syt00", "7 tokens to this model (xx + y + 5 + sy + t + 0 + 0)"),
        ("my dog", "2 tokens to this model (my + dog)"),
        ("ohwx", ""),
        ("rcn", ""),
        ("q", ""),
        ("qxz", ""),  # letters alone mean nothing
    ],
)
def test_what_speaks_against_a_word(clip, word, said):
    found = identifiers.judge(word, clip)
    assert bool(found) == bool(said)
    if said:
        assert said in found[0]


def job(identifier="auto", **sections):
    return Job.model_validate(
        {
            "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
            "subject": {"identifier": identifier, "class_noun": "old dog"},
            "data": {"kind": "folder", "path": "."},
            **sections,
        }
    )


def test_auto_is_a_function_of_tokenizer_and_seed():
    one = identifiers.settled(job())
    assert one.subject.identifier != "auto"
    assert identifiers.settled(job()) == one
    assert identifiers.settled(one) is one
    others = {
        identifiers.settled(job(train={"seed": seed})).subject.identifier for seed in range(20)
    }
    assert len(others) > 3
    assert others <= set(identifiers.proposals(one.model.vocabulary()))
    elsewhere = job(model={"kind": "stable_diffusion", "source": "builtin:emoji-64"})
    assert identifiers.settled(elsewhere).subject.identifier in identifiers.proposals(
        elsewhere.model.vocabulary()
    )


def test_auto_makes_a_new_word_where_the_policy_learns_one(monkeypatch):
    monkeypatch.setattr(identifiers, "learns_word", lambda job: True)
    assert identifiers.settled(job()).subject.identifier == "<my-old-dog>"
    taken = SimpleNamespace(has=lambda word: word in {"<my-old-dog>", "<my-old-dog-2>"})
    assert identifiers._new_word(job(), taken) == "<my-old-dog-3>"
    assert identifiers.warnings(job("sks")) == []


def test_a_model_that_says_nothing_about_its_words(monkeypatch):
    from dreambooth_plugins.model import StableDiffusion

    monkeypatch.setattr(StableDiffusion, "vocabulary", lambda self: None)
    with pytest.raises(JobError, match="does not say how it splits text"):
        identifiers.settled(job())
    assert identifiers.warnings(job("sks")) == []
    monkeypatch.undo()

    def unreadable(self):
        raise RunError("gone")

    monkeypatch.setattr(StableDiffusion, "vocabulary", unreadable)
    assert identifiers.warnings(job("sks")) == []


@pytest.fixture
def file(tmp_path, pictures):
    def write(identifier):
        path = tmp_path / "job.yaml"
        path.write_text(
            "model: {kind: stable_diffusion, source: 'builtin:tiny'}\n"
            f"subject: {{identifier: {identifier}, class_noun: dog}}\n"
            f"data: {{kind: folder, path: {pictures}, resolution: 32}}\n"
        )
        return path

    return write


@pytest.fixture
def dbt(monkeypatch, capsys):
    from dreambooth import cli

    def call(*args):
        monkeypatch.setattr("sys.argv", ["dbt", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


def test_validate_warns_and_does_not_fail(file, dbt):
    code, out, err = dbt("validate", file("sks"))
    assert (code, ": ok: " in out) == (0, True)
    assert "warning: " in err
    assert "rifle" in err
    assert "dbt identifier" in err
    code, out, err = dbt("validate", file("day"), "--json")
    assert (code, err) == (0, "")
    [result] = json.loads(out)
    assert (result["ok"], len(result["warnings"])) == (True, 1)
    assert dbt("validate", file("ohwx"))[2] == ""


def test_the_command_proposes_and_judges(file, dbt):
    began = time.monotonic()
    code, out, err = dbt("identifier", file("sks"))
    assert code == 0
    assert out.startswith('"sks", 2 tokens: s + ks\n')  # the tiny vocabulary has no sks
    assert "rare words of one token: pt, " in out
    assert "rifle" in err
    assert time.monotonic() - began < 2
    code, out, err = dbt("identifier", file("auto"), "--json", "-n", "3")
    result = json.loads(out)
    assert len(result["proposals"]) == 3
    assert result["auto"] is True
    assert result["identifier"] == check_job(file("auto")).subject.identifier
    assert result["tokens"] == [result["identifier"]]


def test_a_job_that_says_auto_is_checked_and_written_with_the_word(file):
    checked = check_job(file("auto"))
    assert checked.subject.identifier != "auto"
    assert f"identifier: {checked.subject.identifier}\n" in dump_job(checked)


def test_auto_without_a_vocabulary_is_an_error_at_its_place(file, dbt, monkeypatch):
    from dreambooth_plugins.model import StableDiffusion

    monkeypatch.setattr(StableDiffusion, "vocabulary", lambda self: None)
    code, _, err = dbt("validate", file("auto"))
    assert code == 2
    assert "job.yaml:2:23: model kind" in err
