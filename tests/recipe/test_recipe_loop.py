"""The recipe's loop and optimiser: exact resume, the rates, the orthogonal update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dreambooth.errors import RunError
from dreambooth.helpers.random import generator
from emoji_recipe import loop, optim
from emoji_recipe.clip import contrastive_loss
from emoji_recipe.objectives import Flow, min_snr_weight, objective, sample, stratified
from emoji_recipe.settings import CLIPSettings, RecipeSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make_stage() -> loop.Stage:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3), torch.nn.SiLU(), torch.nn.Conv2d(6, 2, 3, bias=False)
        )

    def rows(step: int, progress: float) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(2, 3, 8, 8, generator=generator(0, "test", step))}

    def loss(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": net(rows["x"]).square().mean()}

    modules = {"net": net}
    return loop.Stage(
        name="toy",
        modules=modules,
        optimizers=optim.build(net.named_parameters(), 1e-3, 2e-3),
        rows=rows,
        loss=loss,
        options=CLIPSettings(steps=8, decay_share=1.0),
        ema=loop.EMA(modules, 0.9),
    )


def test_resumed_state_equals_straight_run_to_the_bit(tmp_path: Path) -> None:
    straight, settings = make_stage(), RecipeSettings(work=tmp_path)
    for step in range(8):
        loop.train_step(straight, step, 8)

    begun = make_stage()
    for step in range(3):
        loop.train_step(begun, step, 8)
    loop.save(begun, settings, {"step": 3, "cpu_seconds": 1.5})
    resumed = make_stage()
    assert loop.load(resumed, settings) == {"step": 3, "cpu_seconds": 1.5}
    for step in range(3, 8):
        loop.train_step(resumed, step, 8)

    one, other = loop.state_tensors(straight), loop.state_tensors(resumed)
    assert one.keys() == other.keys()
    assert any(name.startswith("optimizer.1.") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_fit_finishes_and_does_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RecipeSettings(work=tmp_path)
    assert loop.fit(make_stage(), settings)
    assert loop.load(make_stage(), settings)["step"] == 8
    assert "toy 8/8" in capsys.readouterr().out
    assert loop.fit(make_stage(), settings)
    assert capsys.readouterr().out == ""


def test_rates_warm_up_hold_and_fall_to_a_hundredth() -> None:
    assert loop.rate_factor(0, 1000, 0.5) == pytest.approx(1 / loop.WARM_UP)
    assert loop.rate_factor(loop.WARM_UP, 1000, 0.5) == 1
    assert loop.rate_factor(500, 1000, 0.5) == 1
    assert loop.rate_factor(750, 1000, 0.5) == pytest.approx(0.5)
    assert loop.rate_factor(999, 1000, 0.5) == pytest.approx(0.01)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (12, 12)])
def test_orthogonalised_update_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator(0, "matrix"), dtype=torch.float64)
    made = optim.orthogonalise(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ made @ v.T
    values = inner.diagonal()
    assert torch.allclose(inner, torch.diag(values), atol=1e-6)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_momentum_update_is_the_formula_and_parameters_of_one_shape_do_not_mix() -> None:
    shapes = [(4, 3, 2, 2), (4, 3, 2, 2), (6, 5)]
    params = [torch.nn.Parameter(torch.randn(s, generator=generator(1, "p"))) for s in shapes]
    wanted = [p.detach().clone() for p in params]
    buffers = [torch.zeros_like(p) for p in wanted]
    muon = optim.Muon(params, lr=0.1)
    for step in range(3):
        for i, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=generator(1, "g", step, i))
            buffers[i] = 0.95 * buffers[i] + param.grad
            look = (param.grad + 0.95 * buffers[i]).flatten(1)
            move = optim.orthogonalise(look) * 0.2 * max(look.shape) ** 0.5
            wanted[i] -= 0.1 * move.view_as(wanted[i])
        muon.step()
    for param, other in zip(params, wanted, strict=True):
        assert torch.allclose(param, other, atol=1e-5)


def test_weights_without_numbers_are_not_saved(tmp_path: Path) -> None:
    stage, settings = make_stage(), RecipeSettings(work=tmp_path)
    rows = stage.rows
    stage.rows = lambda step, progress: {
        "x": rows(step, progress)["x"] * (float("nan") if step == 5 else 1.0)
    }
    with pytest.raises(RunError, match="is no finite number at step 8"):
        loop.fit(stage, settings)
    assert not (tmp_path / "toy" / loop.STATE).exists()


def test_average_swaps_in_and_out_to_the_bit() -> None:
    stage = make_stage()
    for step in range(3):
        loop.train_step(stage, step, 3)
    before = loop.state_tensors(stage)
    before = {name: value.clone() for name, value in before.items()}
    assert stage.ema is not None
    stage.ema.swap()
    assert not torch.equal(
        loop.state_tensors(stage)["model.net.0.weight"], before["model.net.0.weight"]
    )
    stage.ema.swap()
    after = loop.state_tensors(stage)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_contrastive_loss_shares_the_target_among_equal_captions() -> None:
    logits = torch.tensor([[2.0, 2.0, -9.0], [2.0, 2.0, -9.0], [-9.0, -9.0, 2.0]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    # Two equal captions can do no better than an even guess between the two.
    expected = (2 * torch.log(torch.tensor(2.0))) / 3
    assert contrastive_loss(logits, same).item() == pytest.approx(expected.item(), abs=1e-3)
    alone = torch.eye(3, dtype=torch.bool)
    assert contrastive_loss(5 * torch.eye(3), alone) < contrastive_loss(torch.eye(3), alone)


def test_min_snr_weight_matches_the_formula() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.01])
    weights = min_snr_weight(alphas, 5.0)
    assert weights.tolist() == pytest.approx([5 / 99, 1.0, 1.0], rel=1e-4)


def test_min_snr_weight_of_v_is_divided_by_one_more() -> None:
    alphas = torch.tensor([0.99, 0.5])
    weights = min_snr_weight(alphas, 5.0, "v_prediction")
    assert weights.tolist() == pytest.approx([0.05, 0.5], rel=1e-5)


def test_stratified_draws_lie_one_in_each_part() -> None:
    draws = stratified(8, generator(0, "t"))
    assert (draws * 8).long().tolist() == list(range(8))


def test_flow_rows_lie_between_latents_and_noise() -> None:
    z, noise = torch.ones(64, 1, 2, 2), torch.zeros(64, 1, 2, 2)
    row = Flow().noised(z, noise, generator(0, "t"))
    s = row.t / 1000
    assert torch.allclose(row.z_t[:, 0, 0, 0], 1 - s)
    assert torch.equal(row.target, noise - z)
    # Logit-normal: half of the draws on either side of the middle, few at the ends.
    assert abs((s < 0.5).float().mean() - 0.5) < 0.05
    assert ((s > 0.1) & (s < 0.9)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "flow"])
def test_solver_of_each_objective_finds_the_picture_a_perfect_network_knows(name: str) -> None:
    aim, z = objective(name, 5.0), torch.full((2, 4, 4, 4), 0.7)
    noise = torch.randn(z.shape, generator=generator(0, "noise"))

    def perfect(z_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        x0 = z.repeat(len(z_t) // len(z), 1, 1, 1)
        if name == "flow":
            return (z_t - x0) / (t / 1000).view(-1, 1, 1, 1)
        alpha = aim.scheduler.alphas_cumprod[t.long()].view(-1, 1, 1, 1)
        eps = (z_t - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return eps if name == "epsilon" else alpha.sqrt() * eps - (1 - alpha).sqrt() * x0

    cond = torch.zeros(2, 1, 8)
    made = sample(perfect, aim.solver(), noise, cond, cond, 12, 3.0)
    # The last step of Stable Diffusion's schedule leaves a little noise.
    assert torch.allclose(made, z, atol=0.15)
