"""Set-up: what is in memory, what trains, and in which form."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.step import train_step

UNET = {"kind": "components", "train": ["unet"]}
TEXT = {"kind": "components", "train": ["text_encoder"]}


def test_what_is_cached_has_left_memory(open_for):
    assert open_for(freezing=UNET).model.loaded() == ("unet",)


def test_random_crops_keep_the_vae_since_they_are_encoded_each_step(open_for):
    session = open_for(freezing=UNET, data={"crop": "random"})
    train_step(session)
    assert session.model.loaded() == ("unet", "vae")


@pytest.mark.parametrize("policy", [UNET, TEXT], ids=["unet", "text"])
def test_the_rest_is_frozen_in_evaluation_mode_without_gradients(open_for, policy):
    session = open_for(freezing=policy, train={"max_grad_norm": None})
    [trained] = policy["train"]
    seen = {}
    step = session.state.optimizer.step

    def spy(*args, **kwargs):
        for part in session.model.loaded():
            module = session.model.parts[part]
            seen[part] = (module.training, [p.grad is not None for p in module.parameters()])
        return step(*args, **kwargs)

    session.state.optimizer.step = spy
    train_step(session)
    assert seen["unet"][0] is (trained == "unet")
    for part, (training, gradients) in seen.items():
        assert training is (part == trained)
        assert all(gradients) if part == trained else not any(gradients)
    assert {name.split(".")[0] for name in session.state.parameters} == {trained}
    owned = {id(p) for group in session.state.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in session.state.parameters.values()}


def test_half_precision_holds_frozen_parts_small_and_trains_float32(open_for):
    session = open_for("bf16", freezing=TEXT)
    parts = session.model.parts
    dtypes = {
        name: {p.dtype for p in parts[name].parameters()} for name in ("unet", *TEXT["train"])
    }
    assert dtypes["unet"] == {torch.bfloat16}
    assert dtypes["text_encoder"] == {torch.float32}
    train_step(session)
    state = session.state.optimizer.state.values()
    assert {v.dtype for s in state for v in s.values()} == {torch.float32}


def test_every_prompt_is_encoded_once_and_kept(open_for):
    session = open_for(freezing=UNET, data={"caption_dropout": 0.5}, samples={"every": 1})
    assert set(session.model.embeddings) == {
        "", "a photo of a dog", "a photo of ohwx dog",
        "picture 0 of ohwx dog", "picture 1 of ohwx dog", "picture 2 of ohwx dog",
    }  # fmt: skip
    for micro in range(3):
        session.batches.make(micro, 0)
    train_step(session)
    assert "text_encoder" not in session.model.loaded()


def test_a_store_that_others_can_write_is_told_once(open_for, monkeypatch, tmp_path, caplog):
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "store"))
    open_for(prior="none")
    said = [
        record.message for record in caplog.records if "other users can change" in record.message
    ]
    assert len(said) == 1
