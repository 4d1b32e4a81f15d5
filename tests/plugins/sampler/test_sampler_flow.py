"""Solvers and guidance of flows, against diffusers' schedulers and guiders and the formulas."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from dreambooth.errors import RunError
from dreambooth.helpers.flow import renormalised
from dreambooth.interfaces import Conditioning, FlowSpec, LatentSpec, LoadedModel, ModelInfo
from dreambooth_plugins.sampler.flow import FlowSampler
from dreambooth_plugins.sampler.flow_guidance import FlowGuidance
from dreambooth_plugins.sampler.flow_steps import DPM2M, euler, times, zero_star
from dreambooth_plugins.sampler.guidance import guide

CPU = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
CONFIG = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
INFO = ModelInfo(
    "x", "flow", CONFIG, (), {"denoiser": (), "text_encoders": (), "vae": ()},
    LatentSpec(4, 2, 4, 2), 16, flow=FlowSpec(),
)  # fmt: skip
SIZE = (16, 24)


class Straight(LoadedModel):
    """A network that knows where each prompt's picture lies: its velocity is z - x0 over s."""

    def __init__(self, info=INFO):
        super().__init__()
        self.info, self.parts, self.asked = info, {}, []

    def encode_prompts(self, prompts):
        seeds = [sum(map(ord, prompt)) for prompt in prompts]
        shape = (4, SIZE[0] // 2, SIZE[1] // 2)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return [Conditioning({"x0": x0}) for x0 in drawn]

    def collate(self, conditionings):
        return Conditioning({"x0": torch.stack([c.tensors["x0"] for c in conditionings])})

    def condition(self, cond, rows, *, guidance=None):
        if guidance is not None:
            given = torch.full((len(rows),), guidance)
            return Conditioning({**cond.tensors, "guidance": given})
        return cond

    def denoise(self, z_t, t, cond):
        assert t.dtype == torch.float32
        self.asked.append((float(t[0]), len(z_t), cond.tensors.get("guidance")))
        return (z_t - cond.tensors["x0"]) / t[:, None, None, None]

    loaded = release = fingerprint = encode_images = decode = save = frozen_copy = None
    stored_weights = enable_gradient_checkpointing = None


Straight.__abstractmethods__ = frozenset()


def draw(sampler, model=None, prompts=("a dog", "a cat"), **more):
    model = model or Straight()
    given = {"seeds": [1, 2], "size": SIZE, "solver_config": model.info.schedule, "ctx": CPU}
    return sampler.sample(model, list(prompts), **{**given, **more})


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_straight_path_ends_where_it_leads(solver, steps):
    model = Straight()
    found = draw(FlowSampler(solver=solver, steps=steps, guidance_scale=1.0), model)
    wanted = model.collate(model.encode_prompts(["a dog", "a cat"])).tensors["x0"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(model.asked) == steps


def curved(z, s):
    """A velocity that bends: no solver is exact on it."""
    return torch.sin(3 * z) * (1 + s) + z * s


def test_euler_steps_are_diffusers():
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    table = times(INFO, CONFIG, (8, 12), 6)
    solver.set_timesteps(sigmas=[1 - i / 6 for i in range(6)])
    torch.testing.assert_close(torch.tensor(table), solver.sigmas)
    ours = theirs = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(solver.timesteps):
        ours = euler(ours, curved(ours, table[i]), table[i], table[i + 1])
        theirs = solver.step(curved(theirs, table[i]), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_second_order_steps_are_diffusers():
    solver = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", solver_order=2
    )
    solver.set_timesteps(8)
    table = [float(s) for s in solver.sigmas]
    take = DPM2M()
    ours = theirs = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(solver.timesteps):
        ours = take(ours, curved(ours, table[i]), table[i], table[i + 1])
        theirs = solver.step(curved(theirs, table[i]), t, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_second_order_is_nearer_to_the_exact_solution():
    start = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    def solved(make, steps):
        take, z, table = make(), start, [1 - i / steps for i in range(steps + 1)]
        for s, r in pairwise(table):
            z = take(z, curved(z, s), s, r)
        return z

    exact = solved(lambda: euler, 3000)
    apart = [float((solved(make, 48) - exact).abs().mean()) for make in (lambda: euler, DPM2M)]
    assert apart[1] < 0.5 * apart[0]


def test_the_table_begins_where_the_family_says():
    schedule = dataclasses.replace(INFO, flow=FlowSpec(begins="schedule"))
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(5)
    torch.testing.assert_close(torch.tensor(times(schedule, CONFIG, (8, 8), 5)), solver.sigmas)
    assert times(INFO, CONFIG, (8, 8), 5) != times(schedule, CONFIG, (8, 8), 5)


def test_true_guidance_runs_both_halves_together():
    model = Straight()
    found = draw(FlowSampler(steps=1, guidance_scale=3.0), model, negative="grey")
    assert [(asked[1], asked[2]) for asked in model.asked] == [(4, None)]
    grey, dog, cat = (c.tensors["x0"] for c in model.encode_prompts(["grey", "a dog", "a cat"]))
    wanted = torch.stack([grey + 3 * (x - grey) for x in (dog, cat)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_guidance_is_confined_to_its_interval():
    model = Straight()
    draw(FlowSampler(steps=10, guidance_scale=3.0, interval=(0.5, 0.9)), model)
    for s, rows, _ in model.asked:
        assert rows == (4 if 0.5 < s <= 0.9 else 2), s
    assert {rows for _, rows, _ in model.asked} == {2, 4}


def test_embedded_guidance_is_given_and_costs_one_half():
    embedded = dataclasses.replace(INFO, guidance="embedded", guidance_default=3.5)
    for sampler, given in [
        (FlowSampler(steps=2), 3.5),
        (FlowSampler(steps=2, guidance_scale=1.5), 1.5),
    ]:
        model = Straight(embedded)
        draw(sampler, model)
        assert [rows for _, rows, _ in model.asked] == [2, 2]
        assert model.asked[0][2].tolist() == [given] * 2
    model = Straight(embedded)
    draw(FlowSampler(steps=1, guidance="true", guidance_scale=2.0, embedded_scale=1.25), model)
    assert model.asked[0][1] == 4
    assert model.asked[0][2].tolist() == [1.25] * 4


def test_distilled_models_are_not_guided():
    model = Straight(dataclasses.replace(INFO, guidance="none"))
    draw(FlowSampler(steps=2), model)
    assert [(rows, given) for _, rows, given in model.asked] == [(2, None)] * 2


def test_the_scale_of_cfg_zero_is_diffusers():
    from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale

    u, c = (torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    theirs = cfg_zero_star_scale(c.flatten(1), u.flatten(1)).view(-1, 1, 1, 1) * u
    torch.testing.assert_close(zero_star(u, c), theirs, rtol=1e-5, atol=1e-6)


def test_cfg_zero_stands_still_at_first():
    model = Straight()
    draw(FlowSampler(steps=50, guidance_scale=3.0, zero_star=True), model)
    assert len(model.asked) == 48
    guidance = FlowGuidance(3.0, zero_star=True)
    assert [guidance.still(i, 28) for i in range(3)] == [True, False, False]
    assert not guidance.still(0, 1)


def test_a_renormalised_prediction_has_the_conditional_ones_length():
    u, c = (torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    guided = guide(u, c, 4.0)

    def tokens(z):
        from dreambooth_plugins.model.flow.loaded import packed

        return packed(z)

    theirs = tokens(guided) * (
        tokens(c).norm(dim=-1, keepdim=True) / tokens(guided).norm(dim=-1, keepdim=True)
    )
    torch.testing.assert_close(tokens(renormalised(guided, c, 2)), theirs, rtol=1e-5, atol=1e-6)


def test_rescaling_and_renormalising_reach_the_picture():
    plain = draw(FlowSampler(steps=3, guidance_scale=4.0))
    assert not torch.allclose(plain, draw(FlowSampler(steps=3, guidance_scale=4.0, rescale=0.7)))
    family = dataclasses.replace(INFO, flow=FlowSpec(renormalised=True))
    assert not torch.allclose(
        plain, draw(FlowSampler(steps=3, guidance_scale=4.0), Straight(family))
    )


@pytest.mark.parametrize(
    ("options", "guidance", "said"),
    [
        ({"guidance": "embedded"}, "cfg", "takes no guidance as an input"),
        ({"guidance": "none"}, "embedded", "must be given a number"),
        ({"guidance": "true"}, "none", "nothing is usual"),
        ({"guidance_scale": 3.0}, "none", "draws without guidance"),
    ],
)
def test_ways_that_do_not_fit_are_told(options, guidance, said):
    info = dataclasses.replace(INFO, guidance=guidance)
    [problem] = FlowSampler(**options).check(None, info)
    assert said in problem.message
    assert not list(FlowSampler().check(None, info))


def test_other_predictions_are_told():
    [problem] = FlowSampler().check(None, dataclasses.replace(INFO, prediction="epsilon"))
    assert problem.hint == "set sampler: cfg"


@pytest.mark.parametrize(
    ("guidance", "way", "scale", "cost"),
    [("cfg", "true", 7.5, 8.0), ("embedded", "embedded", 7.5, 4.0), ("none", "none", 1.0, 4.0)],
)
def test_what_is_left_open_is_written_out(guidance, way, scale, cost):
    info = dataclasses.replace(INFO, guidance=guidance)
    settled = FlowSampler(steps=4).settled(lambda: info)
    assert (settled.guidance, settled.guidance_scale, settled.forwards()) == (way, scale, cost)
    assert settled.settled(lambda: info) == settled
    assert settled.extra_prompts() == ([""] if way == "true" else [])


def test_an_interval_is_counted_on_the_table_of_one_shift():
    sampler = FlowSampler(steps=10, guidance="true", guidance_scale=2.0, interval=(0.5, 0.9))
    model = Straight()
    draw(sampler, model, prompts=["a dog"], seeds=[1])
    assert sampler.forwards(CONFIG) == sum(rows for _, rows, _ in model.asked)


def test_numbers_that_are_not_finite_are_told(monkeypatch):
    monkeypatch.setattr(Straight, "denoise", lambda self, z, t, cond: z * float("nan"))
    with pytest.raises(RunError, match="not finite"):
        draw(FlowSampler(steps=1))
