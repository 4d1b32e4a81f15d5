"""Stages: who learns when, what leaves the optimizer alone, and which texts are encoded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.loop import run, snapshot
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.stages import stages_of
from dreambooth.engine.step import train_step
from dreambooth.errors import PluginError
from dreambooth.interfaces import FreezingPolicy, Stage
from dreambooth_plugins.freezing import Components
from test_run import Listening, lines

TEXT_FIRST = {"kind": "components", "until": {"text_encoder": 3}, "start": {"unet": 2}}


def stage_names(policy, steps, names=("unet.a", "text_encoder.b")):
    return [(s.until, sorted(s.names)) for s in policy.stages(names, steps)]


def test_times_of_parts_become_stages():
    unet, text = "unet.a", "text_encoder.b"
    both = [text, unet]
    assert stage_names(Components(), 10) == [(10, both)]
    assert stage_names(Components(until={"text_encoder": 4}), 10) == [(4, both), (10, [unet])]
    assert stage_names(Components(until={"text_encoder": 0.3}), 10) == [(3, both), (10, [unet])]
    assert stage_names(Components(start={"unet": 4}), 10) == [(4, [text]), (10, both)]
    assert stage_names(Components(**{k: TEXT_FIRST[k] for k in ("until", "start")}), 6) == [
        (2, [text]), (3, both), (6, [unet]),
    ]  # fmt: skip
    assert stage_names(Components(until={"text_encoder": 50}), 10) == [(10, both)]
    assert stage_names(Components(until={"text_encoder": 0.01}), 10)[0] == (1, both)


@pytest.mark.parametrize(
    ("given", "at", "message"),
    [
        ({"until": {"vae": 3}}, ("until", "vae"), "not a part that trains here"),
        ({"start": {"unet": 9}}, ("start", "unet"), "would never train: from step 9"),
        ({"until": {"unet": 2}, "start": {"unet": 3}}, ("start", "unet"), "never train"),
        ({"until": {"unet": 2, "text_encoder": 3}}, ("until",), "nothing would train"),
    ],
)
def test_times_without_sense_are_problems(small_job, given, at, message):
    job = small_job(freezing={"kind": "components", **given}, train={"steps": 6})
    [problem] = job.freezing.check(job, job.model.describe())
    assert problem.at == ("freezing", *at)
    assert message in problem.message


class Fixed(FreezingPolicy):
    kind: str = "fixed"
    made: tuple = ()

    def stages(self, names, steps):
        return [Stage(until, frozenset(inside)) for until, inside in self.made]


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ([(4, "ab")], "reach step 6"),
        ([(6, "ab"), (3, "a")], "must rise"),
        ([(6, "a")], "'b' is in no stage"),
        ([(6, "abc")], "'c' is in a stage but does not train"),
        ([(3, ""), (6, "ab")], "nothing trains in the stage that ends at step 3"),
        ([], "end at"),
    ],
)
def test_a_policy_with_faulty_stages_is_a_plugins_fault(made, fault):
    with pytest.raises(PluginError, match=fault):
        stages_of(Fixed(made=tuple(made)), ["a", "b"], 6)


def test_what_a_stage_leaves_out_has_no_gradient_no_update_and_no_optimizer_step(open_for):
    session = open_for(freezing=TEXT_FIRST, train={"steps": 6, "max_grad_norm": None})
    optimizer, step = session.state.optimizer, session.state.optimizer.step
    grads = []

    def spy(*args, **kwargs):
        found = session.state.parameters.items()
        grads.append({name.split(".")[0] for name, p in found if p.grad is not None})
        return step(*args, **kwargs)

    optimizer.step = spy
    seen = []
    for _ in range(6):
        before = {n: p.detach().clone() for n, p in session.state.parameters.items()}
        train_step(session)
        moved = {n for n, p in session.state.parameters.items() if not torch.equal(p, before[n])}
        seen.append({name.split(".")[0] for name in moved})
    text, unet = "text_encoder", "unet"
    assert seen == grads == [{text}, {text}, {text, unet}, {unet}, {unet}, {unet}]
    steps = {
        name.split(".")[0]: {int(optimizer.state[p]["step"])}
        for name, p in session.state.parameters.items()
    }
    assert steps == {text: {3}, unet: {4}}
    assert not session.model.parts[text].training
    assert session.model.parts[unet].training


def test_texts_are_encoded_once_after_the_last_stage_that_trains_them(open_for, monkeypatch):
    session = open_for(
        freezing={"kind": "components", "until": {"text_encoder": 2}}, train={"steps": 5}
    )
    model, asked = session.model, []
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda p: asked.append(list(p)) or encode(p))
    train_step(session)
    assert not model.text_is_frozen
    assert model.embeddings == {}
    train_step(session)
    before = len(asked)
    train_step(session)
    assert asked[before:] == [[prompt] for prompt in sorted(model.embeddings)]
    assert set(model.embeddings) >= {"a photo of a dog", "picture 0 of ohwx dog"}
    for prompt, kept in model.embeddings.items():
        with torch.no_grad():
            [now] = encode([prompt])
        assert torch.equal(kept.tensors["embeds"], now.tensors["embeds"])
        assert not kept.tensors["embeds"].requires_grad
    asked.clear()
    train_step(session)
    assert asked == []


def test_a_text_encoder_that_starts_late_is_encoded_with_from_then_on(open_for):
    session = open_for(
        freezing={"kind": "components", "start": {"text_encoder": 2}}, train={"steps": 4}
    )
    names = [n for n in session.state.parameters if n.startswith("text_encoder.")]
    moved = []
    for _ in range(4):
        before = {n: session.state.parameters[n].detach().clone() for n in names}
        train_step(session)
        moved.append(any(not torch.equal(session.state.parameters[n], before[n]) for n in names))
    assert moved == [False, False, True, True]
    assert session.model.embeddings == {}


def test_the_look_for_movement_is_at_what_the_first_stage_trains(open_for):
    session = open_for(freezing=TEXT_FIRST, train={"steps": 6})
    assert {name.split(".")[0] for name in snapshot(session)} == {"text_encoder"}


def test_kept_texts_change_the_time_not_the_numbers(small_job):
    options = {"freezing": {"kind": "components", "until": {"text_encoder": 2}}}
    kept = run(small_job(name="kept", train={"steps": 6}, **options))
    fresh = run(small_job(name="fresh", train={"steps": 6, "cache": False}, **options))
    for one, two in zip(lines(kept.folder), lines(fresh.folder), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)


def test_previews_of_an_average_encode_with_the_averaged_text_encoder(open_for):
    session = open_for(
        freezing={"kind": "components", "until": {"text_encoder": 2}},
        train={"steps": 5, "ema": {"decay": 0.9}},
        optimizer={"lr": 1e-2},
    )
    for _ in range(3):
        train_step(session)
    model, prompt = session.model, "picture 0 of ohwx dog"
    assert model.text_is_frozen
    [trained] = model.conditionings([prompt])
    with session.state.showing_result(), torch.no_grad():
        [shown] = model.conditionings([prompt])
        [expected] = model.encode_prompts([prompt])
    assert torch.equal(shown.tensors["embeds"], expected.tensors["embeds"])
    assert not torch.equal(shown.tensors["embeds"], trained.tensors["embeds"])
    [again] = model.conditionings([prompt])
    assert again is trained


def test_a_part_that_starts_late_is_the_bases_until_then(small_job, tiny_model):
    job = small_job(
        freezing={"kind": "components", "start": {"text_encoder": 4}},
        train={"steps": 5},
        checkpoints={"every": 4},
    )
    listening = Listening()
    result = run(job, reporter=listening)
    at_four = load_file(result.folder / "checkpoints/step-000004/trainable.safetensors")
    base = load_file(tiny_model / "text_encoder/model.safetensors")
    text = {n: t for n, t in at_four.items() if n.startswith("text_encoder.")}
    assert len(text) == len(base)
    for name, tensor in text.items():
        assert torch.equal(tensor, base[name.replace("text_encoder.", "text_model.", 1)]), name
    state = load_file(result.folder / "checkpoints/step-000004/optimizer.safetensors")
    assert {name.split(".")[0] for name in state} == {"unet"}
    assert "steps 1 to 4: unet" in listening.lines
    assert "from step 5 on: text_encoder, unet" in listening.lines


def test_the_plan_names_the_stages(small_job):
    plan = make_plan(small_job(freezing=TEXT_FIRST, train={"steps": 6}), Quiet())
    assert plan.notes == (
        "steps 1 to 2: text_encoder", "steps 3 to 3: text_encoder, unet", "steps 4 to 6: unet",
    )  # fmt: skip


def test_more_steps_do_not_go_on_where_they_would_move_a_stage(small_job):
    from dreambooth.errors import JobError

    share = {"kind": "components", "until": {"text_encoder": 0.5}}
    run(small_job(freezing=share))
    with pytest.raises(JobError, match=r"train\.steps: 4 -> 6"):
        run(small_job(freezing=share, train={"steps": 6}))


def test_a_part_that_starts_later_warms_up_from_its_own_start(open_for):
    s = open_for(
        freezing={"kind": "components", "train": ["unet", "text_encoder"], "start": {"unet": 3}},
        lr_schedule={"kind": "constant", "warmup_steps": 2},
        train={"steps": 6},
    )
    rates = []
    for _ in range(6):
        logged = train_step(s).lr
        by_part = {}
        for group in s.state.optimizer.param_groups:
            names = [n for n, p in s.state.parameters.items() if p is group["params"][0]]
            by_part[names[0].split(".")[0]] = group["lr"] / 1e-3
        rates.append((by_part["text_encoder"], by_part["unet"], logged / 1e-3))
    assert rates == [
        (0.5, 0, 0.5), (1, 0, 1), (1, 0, 1), (1, 0.5, 1), (1, 1, 1), (1, 1, 1)
    ]  # fmt: skip
