"""What learns, at which rate, and from what: freezing policies, losses, optimizers, rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from dreambooth.testing.base import Conformance

if TYPE_CHECKING:
    from dreambooth.interfaces import StepTensors
    from dreambooth.testing.trainer import Trainer


class FreezingPolicyConformance(Conformance):
    """A policy trains what it says and nothing else, resumes exactly, and ends in an artifact."""

    slot: ClassVar[str] = "freezing"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Prepare a model and ask what trains."""
        with trainer.context() as ctx:
            model = ctx.job.model.open(ctx)
            made.prepare(model, ctx)
            return made.trainable(model)

    def test_what_trains_is_the_models_own(self, made: Any, trainer: Trainer) -> None:
        """Names are qualified, parameters those of the model, in the parts it said."""
        with trainer.context() as ctx:
            model = ctx.job.model.open(ctx)
            made.prepare(model, ctx)
            chosen = dict(made.trainable(model))
            assert chosen, "trainable() returned nothing: its names match no parameter"
            own = {id(p) for part in model.parts for p in model.parts[part].parameters()}
            odd = sorted(n for n, p in chosen.items() if id(p) not in own)
            assert not odd, f"{odd[:3]} are no parameters of the model: return those it has"
            parts = {name.partition(".")[0] for name in chosen}
            said = set(made.trained_parts(model.info))
            assert parts <= said, (
                f"trains in {sorted(parts - said)}, which trained_parts() leaves out: those parts "
                "are cached and leave memory before the first step"
            )
            names = sorted(chosen)
        with trainer.context("meta") as ctx:
            model = ctx.job.model.open(ctx)
            made.prepare(model, ctx)
            planned = sorted(made.trainable(model))
            assert planned == names, (
                "on the `meta` device, where the plan counts, other names train than on the CPU: "
                "choose by name and shape, not by value"
            )

    def test_it_trains_that_and_nothing_else_and_resumes_exactly(
        self, made: Any, trainer: Trainer
    ) -> None:
        """Three runs: something moves, and stopping half-way changes no bit."""
        chosen = set(self.exercise(made, trainer))
        whole, _ = self.two_runs(made, trainer)
        assert set(whole.weights()) == chosen, "a run trains other names than trainable() gave"

    def test_what_it_makes_can_be_exported(self, made: Any, trainer: Trainer) -> None:
        """An exporter takes the artifact and finds the live model's weights in the files."""
        ran = trainer.run(**{**self.filled(made), "exports": self.sections.get("exports", "auto")})
        assert ran.result.checks, "nothing was exported: name a kind in `artifacts`"

    def test_groups_and_stages_cover_what_trains(self, made: Any, trainer: Trainer) -> None:
        """Each name is in one group, and in a stage at least."""
        names = sorted(self.exercise(made, trainer))
        grouped = sorted(name for group in made.groups(names) for name in group.names)
        assert grouped == names, "groups() must have each trainable name once"
        stages = made.stages(names, 10)
        assert set().union(*(stage.names for stage in stages)) == set(names), (
            "some names are in no stage of stages(): they would never train"
        )
        assert stages[-1].until >= 10, "the last of stages() must reach the end of the run"

    def test_it_shows_the_base_or_says_what_to_do(self, made: Any, trainer: Trainer) -> None:
        """`showing_base` gives the base's predictions, or `base_hint` what to do without."""
        import torch

        from dreambooth.errors import RunError

        with trainer.context() as ctx, torch.no_grad():
            model = ctx.job.model.open(ctx)
            z, t = torch.ones(1, model.info.latent.channels, 4, 4), torch.tensor([500])
            cond = model.collate(model.encode_prompts(["a dog"]))
            before = model.denoise(z, t, cond)
            made.prepare(model, ctx)
            for parameter in made.trainable(model).values():
                parameter.add_(0.05)
            if hint := made.base_hint():
                with pytest.raises(RunError), made.showing_base(model):
                    pass
                assert isinstance(hint, str)
                return
            with made.showing_base(model) as base:
                shown = (base or model).denoise(z, t, cond)
            assert torch.allclose(shown, before, atol=1e-5), (
                "showing_base() does not show the base: its predictions are not those of before "
                "training; switch off what was added, or yield model.keep_base() made in prepare()"
            )


def step_tensors(rows: int = 4, seed: int = 0) -> StepTensors:
    """Return what a loss may look at, with everything there is: masks, references, SNR."""
    import torch

    from dreambooth.interfaces import StepTensors

    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Any:
        return torch.randn(rows, *shape, generator=rng)

    return StepTensors(
        pred=noise(4, 4, 4).requires_grad_(),
        target=noise(4, 4, 4),
        reference=noise(4, 4, 4),
        t=torch.linspace(10, 900, rows).long(),
        snr=torch.linspace(20.0, 0.05, rows),
        is_prior=torch.arange(rows) >= rows // 2,
        weight=torch.ones(rows),
        mask=torch.rand(rows, 1, 4, 4, generator=rng),
        prediction="epsilon",
        snr_table=torch.linspace(20.0, 0.05, 1000),
    )


class LossConformance(Conformance):
    """A loss gives a number a row, from that row alone, with a gradient."""

    slot: ClassVar[str] = "loss"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Ask for the losses of four rows."""
        return made.rows(step_tensors())

    def test_a_rows_loss_is_its_own(self, made: Any) -> None:
        """The engine divides; batch 4 is 2 x 2 accumulation only where rows are independent."""
        from dataclasses import fields, replace

        import torch

        whole = step_tensors()
        losses = made.rows(whole)
        assert losses.dtype == torch.float32, "rows() must return float32"
        assert bool(losses.isfinite().all()), "rows() is not finite for plain numbers"
        halves = []
        for some in (slice(0, 2), slice(2, 4)):
            cut = {
                f.name: getattr(whole, f.name)[some]
                for f in fields(whole)
                if f.name != "snr_table" and torch.is_tensor(getattr(whole, f.name))
            }
            halves.append(made.rows(replace(whole, **cut)))
        assert torch.allclose(torch.cat(halves), losses, rtol=1e-5), (
            "the losses of two halves are not those of the whole batch: do not average over rows "
            "or look at the others, the engine divides"
        )

    def test_every_row_has_a_gradient_of_its_own_alone(self, made: Any) -> None:
        """Without one nothing is learned from it."""
        import torch

        s = step_tensors()
        losses = made.rows(s)
        (gradient,) = torch.autograd.grad(losses[0], s.pred)
        moved = gradient.flatten(1).abs().sum(1)
        assert moved[0] > 0, "an instance row's loss has no gradient: nothing would be learned"
        assert not moved[1:].any(), "a row's loss depends on other rows' predictions"

    def test_a_rows_weight_multiplies_its_loss(self, made: Any) -> None:
        """Data sources and schedules weigh rows."""
        from dataclasses import replace

        import torch

        s = step_tensors()
        double = made.rows(replace(s, weight=2 * s.weight))
        assert torch.allclose(double, 2 * made.rows(s), rtol=1e-5), (
            "doubling s.weight does not double the loss: multiply each row by it"
        )

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """Whatever it needs is given; what it remembers is a fault."""
        self.two_runs(made, trainer)


class OptimizerConformance(Conformance):
    """An optimizer takes all parameters, goes downhill, and its state is tensors and numbers."""

    slot: ClassVar[str] = "optimizer"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Take twenty steps down a bowl; return the distances before and after."""
        import torch

        at = torch.nn.Parameter(torch.full((64, 64), 2.0))
        optimizer = made.build([{"params": [at]}])
        before = float(at.detach().square().sum())
        for _ in range(20):
            optimizer.zero_grad()
            torch.autograd.backward(at.square().sum())
            optimizer.step()
        return before, float(at.detach().square().sum()), optimizer

    def test_it_goes_downhill(self, made: Any, trainer: Trainer) -> None:
        """At the rate it is configured with."""
        before, after, _ = self.exercise(made, trainer)
        assert after < before, "twenty steps down a bowl did not lower it"

    def test_its_state_is_tensors_and_numbers(self, made: Any, trainer: Trainer) -> None:
        """Checkpoints hold it as safetensors and JSON, nothing is unpickled."""
        import torch

        _, _, optimizer = self.exercise(made, trainer)
        for state in optimizer.state.values():
            for name, value in state.items():
                good = torch.is_tensor(value) or isinstance(value, int | float | bool)
                assert good, f"state {name!r} is a {type(value).__name__}: checkpoints hold tensors"

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """Its state comes back from a checkpoint."""
        self.two_runs(made, trainer)


class LRScheduleConformance(Conformance):
    """A rate is a function of the step, and says whether it depends on the run's end."""

    slot: ClassVar[str] = "lr_schedule"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Ask for every step of a short run."""
        return [made.at(step, 20) for step in range(20)]

    def test_it_is_a_function_of_the_step(self, made: Any, trainer: Trainer) -> None:
        """Asked again in another order it says the same."""
        forward = self.exercise(made, trainer)
        backward = [made.at(step, 20) for step in reversed(range(20))][::-1]
        assert forward == backward, "factor() depends on what was asked before: keep no state"
        assert any(forward), "the rate is 0 at every step: nothing would be learned"

    def test_it_says_whether_it_depends_on_the_end(self, made: Any) -> None:
        """A run can be made longer only where the earlier steps do not change by it."""
        same = all(made.at(step, 20) == made.at(step, 40) for step in range(20))
        assert same or made.depends_on_end(), (
            "more steps change the earlier ones' rates: depends_on_end() must return True"
        )

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """As the engine asks for it."""
        self.two_runs(made, trainer)
