"""Noise and pictures: noise schedulers and samplers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from dreambooth.testing.base import Conformance

if TYPE_CHECKING:
    from dreambooth.testing.trainer import Trainer


class SchedulerConformance(Conformance):
    """A noise schedule draws each row from its own generator, and agrees with itself."""

    slot: ClassVar[str] = "scheduler"

    def opened(self, made: Any, trainer: Trainer) -> Any:
        """Return the schedule, opened for the tiny model."""
        return made.open(trainer.job().model.describe())

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Draw timesteps and noise for two rows."""
        import torch

        rngs = [torch.Generator().manual_seed(k) for k in range(2)]
        return self.opened(made, trainer).draw((4, 4, 4), rngs)

    def test_a_row_depends_on_its_own_generator(self, made: Any, trainer: Trainer) -> None:
        """So that a batch of two is two batches of one."""
        import torch

        both = self.exercise(made, trainer)
        alone = self.opened(made, trainer).draw((4, 4, 4), [torch.Generator().manual_seed(1)])
        same = torch.equal(both.t[1:], alone.t) and torch.equal(both.noise[1:], alone.noise)
        assert same, "draw() gives row i other numbers in another batch: use rngs[i] alone for it"

    def test_the_target_leads_back_to_the_clean_latents(self, made: Any, trainer: Trainer) -> None:
        """`to_x0(target, add_noise(z), t)` is z."""
        import torch

        schedule, z = self.opened(made, trainer), torch.randn(2, 4, 4, 4, generator=_rng())
        draw = self.exercise(made, trainer)
        z_t = schedule.add_noise(z, draw)
        back = schedule.to_x0(schedule.target(z, draw), z_t, draw.t)
        assert torch.allclose(back, z, atol=1e-2), (
            "to_x0(target(z), add_noise(z), t) is not z: the three disagree about what the "
            "network predicts"
        )

    def test_it_says_whether_it_has_a_noise_ratio(self, made: Any, trainer: Trainer) -> None:
        """Losses that weigh by it are refused where it has none."""
        schedule = self.opened(made, trainer)
        ratio = schedule.snr(self.exercise(made, trainer).t)
        assert (ratio is not None) == made.has_snr(), "has_snr() and NoiseSchedule.snr() disagree"
        assert ratio is None or bool((ratio >= 0).all()), "a signal-to-noise ratio is 0 or more"

    def test_quantiles_ascend(self, made: Any, trainer: Trainer) -> None:
        """Validation spreads its rows with them."""
        found = self.opened(made, trainer).timestep_quantiles(5, _rng())
        assert bool((found.diff() >= 0).all()), "timestep_quantiles() must ascend"

    def test_diffusers_reads_its_solver_config(self, made: Any, trainer: Trainer) -> None:
        """It is the scheduler_config.json of what is exported."""
        import diffusers

        config = self.opened(made, trainer).solver_config((32, 32), 4)
        json.dumps(config)
        name = config.get("_class_name", "")
        assert hasattr(diffusers, name), (
            f"solver_config() names the class {name!r}, which diffusers does not have"
        )
        getattr(diffusers, name).from_config(dict(config))

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """As the engine draws."""
        self.two_runs(made, trainer)


class SamplerConformance(Conformance):
    """A sampler draws each picture from its own seed, in the size it is asked for."""

    slot: ClassVar[str] = "sampler"

    def drawn(
        self, made: Any, trainer: Trainer, seeds: list[int], size: tuple[int, int] = (32, 32)
    ) -> tuple[Any, int]:
        """Return latents of one prompt a seed, and how often progress was told."""
        import torch

        told = _Told()
        with trainer.context(sampler=made) as ctx, torch.no_grad():
            model = ctx.job.model.open(ctx)
            schedule = ctx.job.scheduler.open(model.info)
            latents = made.sample(
                model,
                ["a dog"] * len(seeds),
                seeds=seeds,
                size=size,
                solver_config=schedule.solver_config(size, made.sampling_steps()),
                ctx=ctx,
                negative=None,
                progress=told,
            )
        return latents, told.count

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Draw one picture."""
        return self.drawn(made, trainer, [7])[0]

    def test_a_picture_does_not_depend_on_its_batch(self, made: Any, trainer: Trainer) -> None:
        """One generator an image, made from its seed alone."""
        import torch

        both, _ = self.drawn(made, trainer, [1, 2])
        alone, _ = self.drawn(made, trainer, [2])
        apart = float((both[1:] - alone).abs().max() / both.std())  # a batch rounds otherwise
        assert apart < 1e-4, (
            "a picture drawn beside another one differs: make one torch.Generator an image from "
            "its seed, and draw from no other"
        )
        assert not torch.allclose(both[0], both[1]), "two seeds give one picture: seeds are unused"

    def test_it_draws_in_the_size_that_is_asked_for(self, made: Any, trainer: Trainer) -> None:
        """[height, width]; the door refuses other shapes."""
        latents, _ = self.drawn(made, trainer, [1], size=(32, 64))
        assert latents.shape[-1] == 2 * latents.shape[-2], "size is (height, width)"

    def test_it_tells_of_each_step(self, made: Any, trainer: Trainer) -> None:
        """Bars move, and a signal is heard between two steps."""
        _, told = self.drawn(made, trainer, [1])
        assert told == made.sampling_steps(), (
            f"progress was advanced {told} times in {made.sampling_steps()} sampling steps: call "
            "progress.advance() once a step, where progress is given"
        )

    def test_its_other_prompts_are_texts(self, made: Any) -> None:
        """They are encoded before the text encoder leaves memory."""
        assert all(isinstance(prompt, str) for prompt in made.extra_prompts())
        assert made.forwards() > 0

    def test_a_run_draws_with_it(self, made: Any, trainer: Trainer) -> None:
        """Class images and previews."""
        ran = trainer.run(**self.filled(made), samples={"every": 4}, train={"steps": 4})
        assert any(name.startswith("samples/") for name in ran.files)


class _Told:
    count = 0

    def advance(self, count: int = 1) -> None:
        """Count."""
        self.count += count


def _rng() -> Any:
    import torch

    return torch.Generator().manual_seed(3)
