"""What every freezing policy promises: it learns, nothing else moves, a resumed run is the run,
what comes out opens elsewhere, and average, clipping and rates work with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

import dreambooth
from dreambooth.engine.loop import run
from dreambooth.engine.results.exports import export_all
from dreambooth.engine.step import train_step
from dreambooth.runs.folder import RunFolder
from learning import fall, frozen_hashes, row_losses
from policy_cases import CASES, EMOJI, WORD, sections
from test_resume_exact import result_bytes
from test_run import cut

FOX = Path(dreambooth.__file__).parent / "cli" / "examples" / "fox"
every_policy = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# That every method of an adapter resumes exactly is held by test_adapter_runs.py too.
every_state = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.slow] * (name in ("adapter, dora", "adapter, lokr", "adapter, oft")),
        )
        for name, case in CASES.items()
    ],
)


def trained(open_for, given, steps):
    """Train, and return the session with the losses of fixed rows before and after."""
    session = open_for(**given)
    for part in session.model.info.parts:
        assert session.model.parts[part] is not None  # read now, where it does not train
    before, frozen = row_losses(session), frozen_hashes(session)
    for _ in range(steps):
        train_step(session)
    assert len(frozen) > 40
    assert frozen_hashes(session) == frozen
    return session, before, row_losses(session)


def owned(optimizer):
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


@torch.no_grad()
def drawn_live(session, prompt):
    """Return the latents the live model draws, with the weights that are exported."""
    job = session.job
    config = session.schedule.solver_config(job.data.size, job.sampler.sampling_steps())
    with session.state.showing_result(), session.stages.without_kept_texts():
        return job.sampler.sample(
            session.model, [prompt], seeds=[3], size=job.data.size, solver_config=config,
            ctx=session.ctx,
        )  # fmt: skip


def drawn_elsewhere(folder, session, prompt):
    """Return the latents plain diffusers draws from a folder."""
    job, info = session.job, session.model.info
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )
    pipe.set_progress_bar_config(disable=True)
    height, width = job.data.size
    shape = (info.latent.channels, height // info.latent.factor, width // info.latent.factor)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3))[None]
    return pipe(
        prompt,
        num_inference_steps=job.sampler.sampling_steps(),
        guidance_scale=job.sampler.scale(),
        height=height,
        width=width,
        latents=start,
        output_type="latent",
    ).images


def export_draws_the_same(session):
    [export] = export_all(session, RunFolder(session.job.folder))
    prompt = f"a photo of {WORD} dog"
    live = drawn_live(session, prompt)
    apart = (drawn_elsewhere(export.folder, session, prompt) - live).abs().max() / live.std()
    assert apart < (1e-3 if export.kind == "merged" else 1e-4)
    plain = drawn_elsewhere(export.folder, session, "a photo of a tree")
    assert (plain - live).abs().max() / live.std() > 1e-2


@every_policy
def test_it_learns_and_leaves_the_rest_alone_and_opens_elsewhere(open_for, case):
    session, before, after = trained(
        open_for, sections(case, train={"batch_size": 3, "steps": 12}), 12
    )
    by, error = fall(before, after)
    assert by > 3 * error
    optimizer, parameters = session.state.optimizer, session.state.parameters
    assert owned(optimizer) == {id(p) for p in parameters.values()}
    assert {id(p) for p in optimizer.state} == owned(optimizer)
    asking = {
        id(p) for part in session.model.loaded() for p in session.model.parts[part].parameters()
        if p.requires_grad
    }  # fmt: skip
    assert asking <= owned(optimizer)
    export_draws_the_same(session)


@every_state
def test_a_resumed_run_is_the_run_to_the_bit(small_job, monkeypatch, case):
    given = sections(
        case,
        train={"steps": 5, "accumulation": 2, "ema": {"decay": 0.9}},
        data={"flip": True, "caption_dropout": 0.2},
        checkpoints={"every": 2},
    )
    straight = result_bytes(run(small_job(name="straight", **given)).folder, 5)
    assert len(straight) >= 7
    job = small_job(name="resumed", **given)
    for step in (1, 3):
        cut(job, step, monkeypatch)
    assert result_bytes(run(job).folder, 5) == straight


def expected_average(seen, decay):
    """Return the average of [first, ..., last] weights as its definition says, in float64."""
    average = seen[0].double()
    for step, weights in enumerate(seen[1:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * weights.double()
    return average


@every_policy
def test_average_clipping_and_rates_of_parts(open_for, monkeypatch, case):
    limit = 1e-4
    # A token alone has one rate: the optimizer's.
    rates = {} if case.freezing["kind"] == "token" else {"lr": case.own}
    session = open_for(
        **sections(
            case,
            freezing={**rates, "start": {}, "until": {}} if rates else {},
            train={"steps": 4, "ema": {"decay": 0.25}, "max_grad_norm": limit},
        )
    )
    parameters, optimizer = session.state.parameters, session.state.optimizer
    seen = {n: [p.detach().clone()] for n, p in parameters.items()}
    norms, expected, update = [], [], optimizer.step

    def step(*args, **kwargs):
        squares = [p.grad.double().square().sum() for p in parameters.values()]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        return update(*args, **kwargs)

    monkeypatch.setattr(optimizer, "step", step)
    for _ in range(4):
        norm = float(train_step(session).grad_norm)
        assert norm > 2 * limit
        expected.append(limit * norm / (norm + 1e-6))  # torch divides by the norm plus 1e-6
        for name, parameter in parameters.items():
            seen[name].append(parameter.detach().clone())
    assert norms == pytest.approx(expected, rel=1e-4)
    for name, average in session.state.ema.items():
        torch.testing.assert_close(
            average.double(), expected_average(seen[name], 0.25), rtol=1e-5, atol=1e-7
        )
    names = {id(p): n for n, p in parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            unit = session.job.freezing.unit(names[id(parameter)]) if rates else ""
            assert group["lr"] == pytest.approx(case.own.get(unit, case.lr))
    assert len({g["lr"] for g in optimizer.param_groups}) == len(optimizer.param_groups)


@pytest.mark.slow
@every_policy
def test_on_the_embedded_base(open_for, emit, case):
    """The fox of the example, forty steps of four pictures."""
    given = sections(
        case,
        model={"source": EMOJI},
        data={"path": FOX, "resolution": 64},
        subject={"identifier": WORD, "class_noun": "fox"},
        optimizer={"lr": case.emoji_lr},
        sampler={"steps": 10, "guidance_scale": 4.0},
        train={"batch_size": 4, "steps": 40},
    )
    session, before, after = trained(open_for, given, 40)
    by, error = fall(before, after)
    emit("fell by", f"{by / float(before.mean()):.1%} +- {error / float(before.mean()):.1%}")
    assert by > 3 * error
    assert by > 0.02 * before.mean()
    export_draws_the_same(session)
