"""What a run begins with: models, pictures, class pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dreambooth.helpers.live import times_at
from dreambooth.testing.base import Conformance

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.testing.trainer import Trainer


class DataSourceConformance(Conformance):
    """A data source finds the same pictures each time, and makes them the size it says.

    It usually needs a folder: override `make(self, pictures)`.
    """

    slot: ClassVar[str] = "data"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """List the pictures."""
        with trainer.context(**self.filled(made)) as ctx:
            return made.scan(ctx)

    def test_it_lists_the_same_each_time_in_order(self, made: Any, trainer: Trainer) -> None:
        """The order decides which picture a step sees."""
        found = self.exercise(made, trainer)
        ids = [item.id for item in found.items]
        assert ids == sorted(ids), "scan() must sort items by id: a file system has no order"
        assert found == self.exercise(made, trainer), "scan() finds something else each time"
        assert all(len(item.sha256) == 64 for item in found.items), (
            "sha256 is the hex hash of the file's bytes: caches go by it"
        )

    def test_a_numbered_variant_depends_on_nothing_else(self, made: Any, trainer: Trainer) -> None:
        """Cached latents are of that variant; without a number the generator decides."""
        import numpy as np

        item = self.exercise(made, trainer).items[0]
        one = made.load(item, 0, np.random.default_rng(1))
        other = made.load(item, 0, np.random.default_rng(2))
        assert np.array_equal(one.pixels, other.pixels), (
            "load(item, 0, rng) depends on rng: with a variant's number it must not"
        )
        if made.variants(item) is None:
            drawn = [made.load(item, None, np.random.default_rng(1)).pixels for _ in range(2)]
            assert np.array_equal(*drawn), "load(item, None, rng) must be a function of rng"

    def test_every_prompt_is_announced(self, made: Any, trainer: Trainer) -> None:
        """Texts are encoded before the first step; a new one would come too late."""
        import numpy as np

        items, subject = self.exercise(made, trainer).items, trainer.job().subject
        known = set(made.prompts(items, subject))
        for seed in range(20):
            for item in items:
                prompt = made.row_prompt(item, subject, np.random.default_rng(seed))
                assert prompt in known, f"prompts() leaves out {prompt!r}, which a row has"

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """As the engine reads it, latents cached and not."""
        self.two_runs(made, trainer)


class PriorConformance(Conformance):
    """A prior's rows are a function of seed, indices and step, and it says what they carry."""

    slot: ClassVar[str] = "prior"

    def opened(self, made: Any, trainer: Trainer) -> tuple[Any, list[Any]]:
        """Return the opened prior and its rows for two samples at step 3."""
        with trainer.context(**self.filled(made)) as ctx:
            model = ctx.job.model.open(ctx)
            schedule = ctx.job.scheduler.open(model.info)
            opened = made.open(ctx, model, ctx.job.sampler, schedule)
            return opened, opened.rows([4, 5], 3)

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Open it and ask for rows."""
        return self.opened(made, trainer)[1]

    def test_rows_are_a_function_of_indices_and_step(self, made: Any, trainer: Trainer) -> None:
        """A resumed run sees the same."""
        import torch

        opened, rows = self.opened(made, trainer)
        opened.rows([8, 9], 7)  # something in between
        for one, other in zip(rows, opened.rows([4, 5], 3), strict=True):
            assert one.prompt == other.prompt, "rows() depends on what was asked before"
            if one.latents is not None:
                assert torch.equal(one.latents, other.latents), (
                    "rows() gives other latents when it is asked again: make them functions of "
                    "seed, index and step"
                )

    def test_it_says_what_its_rows_are(self, made: Any, trainer: Trainer) -> None:
        """Validate, plan and the text cache go by that."""
        rows = self.exercise(made, trainer)
        assert made.has_rows() == bool(rows), "has_rows() and rows() disagree"
        towards_base = any(row.target == "reference" for row in rows)
        assert not towards_base or made.needs_base(), (
            "rows are trained towards the base's prediction: needs_base() must return True, so "
            "that validate refuses policies that cannot show it"
        )
        prompts = set(made.prompts(trainer.job().subject))
        carried = {p for row in rows for p in (row.prompt, row.reference_prompt) if p}
        mirrored = all(row.latents is None for row in rows)
        assert mirrored or carried <= prompts, (
            f"prompts() leaves out {sorted(carried - prompts)}, which rows carry"
        )

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """As the engine asks for rows."""
        self.two_runs(made, trainer)


class ModelConformance(Conformance):
    """A family encodes prompts one by one, denoises in one unit, and comes back from its files."""

    slot: ClassVar[str] = "model"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Open the model and ask for a prediction."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            return predicted(made.open(ctx), ["a dog"])

    def test_it_describes_itself_and_opens_to_the_same(self, made: Any, trainer: Trainer) -> None:
        """`describe` reads JSON alone; what opens is what it described."""
        info = made.describe()
        with trainer.context(**self.filled(made)) as ctx:
            assert made.open(ctx).info == info, "open(ctx).info differs from describe()"
        assert info.part_names("denoiser"), "roles must name a denoiser"

    def test_it_opens_without_weights_on_meta(self, made: Any, trainer: Trainer) -> None:
        """The plan counts with shapes."""
        with trainer.context("meta", **self.filled(made)) as ctx:
            model = made.open(ctx)
            for name, parameter in model.named_parameters("denoiser"):
                assert parameter.is_meta, f"{name} has weights although ctx.device is meta"

    def test_a_prompts_conditioning_is_its_own(self, made: Any, trainer: Trainer) -> None:
        """They are cached one by one, and a ragged batch equals its rows."""
        import torch

        prompts = ["a dog", "a photo of a very small dog in the snow, from far away"]
        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            together = model.encode_prompts(prompts)
            for prompt, one in zip(prompts, together, strict=True):
                [alone] = model.encode_prompts([prompt])
                for name, tensor in alone.tensors.items():
                    assert torch.allclose(one.tensors[name], tensor, atol=1e-5), (
                        f"{name} of {prompt!r} depends on the prompts beside it: encode each "
                        "unpadded, or mask the padding"
                    )
            both = predicted(model, prompts)
            for row, prompt in enumerate(prompts):
                single = predicted(model, [prompt])
                assert torch.allclose(both[row : row + 1], single, atol=1e-4), (
                    "a prediction depends on the other rows of its batch: collate() must mask "
                    "what it pads"
                )

    def test_pictures_go_through_the_autoencoder(self, made: Any, trainer: Trainer) -> None:
        """Shapes and range; the door refuses others."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            side = 4 * model.info.latent.multiple
            latents = model.encode_images(torch.zeros(2, 3, side, side))
            pixels = model.decode(latents.mean)
            assert float(pixels.abs().max()) <= 1.0, "decode() must clamp to [-1, 1]"

    def test_it_is_saved_and_comes_back(self, made: Any, trainer: Trainer, tmp_path: Path) -> None:
        """`at(folder)` predicts as what `save` wrote; weights can be replaced."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            before = predicted(model, ["a dog"])
            solver = ctx.job.scheduler.open(model.info).solver_config((32, 32), 2)
            model.save(tmp_path / "saved", solver)
            again = made.at(tmp_path / "saved").open(ctx)
            assert torch.allclose(predicted(again, ["a dog"]), before, atol=1e-5), (
                "at(folder) predicts something else than the model that was saved there"
            )
            name, weight = next(iter(model.named_parameters("denoiser")))
            model.save(tmp_path / "moved", solver, {name: weight.detach() + 1.0})
            moved = dict(made.at(tmp_path / "moved").open(ctx).named_parameters("denoiser"))
            assert torch.allclose(moved[name], weight + 1.0, atol=1e-5), (
                "save(weights=...) did not write them in place of the model's own"
            )

    def test_a_frozen_copy_does_not_move(self, made: Any, trainer: Trainer) -> None:
        """Losses compare with it."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            before, copy = predicted(model, ["a dog"]), model.frozen_copy()
            for _, parameter in model.named_parameters("denoiser"):
                parameter.add_(0.05)
            assert torch.allclose(predicted(copy, ["a dog"]), before, atol=1e-5), (
                "frozen_copy() shares weights with the model that trains"
            )

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """As the engine uses it."""
        self.two_runs(made, trainer)


def predicted(model: Any, prompts: list[str]) -> Any:
    """Return a model's predictions for fixed latents, one row a prompt."""
    import torch

    from dreambooth.interfaces import RowGeometry

    channels = model.info.latent.channels
    z = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(5))
    cond = model.collate(model.encode_prompts(prompts))
    cond = model.condition(cond, [RowGeometry((32, 32), (0, 0), (32, 32))] * len(prompts))
    rows = len(prompts)
    return model.denoise(z.expand(rows, -1, -1, -1), times_at(model.info, [0.5] * rows), cond)
