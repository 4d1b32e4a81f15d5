"""A family held against diffusers' own pipeline: the same loss, pictures and files."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dreambooth.helpers.live import drawn, solver_of, times_at
from dreambooth.testing.inputs import ModelConformance
from dreambooth.testing.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dreambooth.interfaces import LoadedModel, Model, RowGeometry

PROMPTS = ("a dog", "a photo of a very small dog in the snow, from far away", "")
STEPS, GUIDANCE = 4, 3.0
SAME, SAME_PICTURE = 1e-5, 1e-4
"""Largest differences, in standard deviations: of texts and predictions, of drawn latents."""


class FamilyConformance(ModelConformance):
    """What `ModelConformance` holds, and: loss, picture and adapter files are those of diffusers.

    The family names its pipeline (`ModelInfo.pipeline`) and implements `pipeline`, `answer` and
    `draw`. Latents are not square, prompts of unequal length, and rows cropped in their own ways.
    """

    def test_the_plan_can_count_it(self, made: Any, trainer: Trainer) -> None:
        """On `meta` a forward pass has shapes and looks at no value."""
        with trainer.context("meta", **self.filled(made)) as ctx:
            model = made.open(ctx)
            latents, t, rows = inputs(model)
            cond = model.condition(model.collate(model.encode_prompts(PROMPTS)), rows)
            shape = model.denoise(latents.to("meta"), t.to("meta"), cond).shape
        assert shape == latents.shape, f"denoise() gives {list(shape)} for {list(latents.shape)}"

    def test_it_predicts_what_diffusers_predicts(self, made: Any, trainer: Trainer) -> None:
        """Texts, sizes, times and signs: the training loss is that of diffusers' scripts."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            latents, t, rows = inputs(model)
            cond = model.condition(model.collate(model.encode_prompts(PROMPTS)), rows)
            ours = model.denoise(latents, t, cond)
            told, theirs = model.answer(model.pipeline(), list(PROMPTS), latents, t, rows)
        assert cond.tensors.keys() == told.tensors.keys(), (
            f"the conditioning has {sorted(cond.tensors)}, answer() gives {sorted(told.tensors)}"
        )
        for name, tensor in cond.tensors.items():
            assert apart(tensor, told.tensors[name]) <= SAME, f"{name} differs from diffusers'"
        assert apart(ours, theirs) <= SAME, (
            "denoise() differs from the pipeline's network: is a sign, a unit of time or a size "
            "another one?"
        )

    def test_it_draws_what_diffusers_draws(self, made: Any, trainer: Trainer) -> None:
        """A guided picture, step by step, equals the pipeline's."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            latents, _, rows = inputs(model)
            ours = drawn(model, PROMPTS[0], "", latents[:1], STEPS, GUIDANCE, rows[0])
            solver = solver_of(model.info)
            theirs = model.draw(
                model.pipeline(), PROMPTS[0], "", latents[:1], solver, STEPS, GUIDANCE
            )
        assert apart(ours, theirs) <= SAME_PICTURE, (
            "draw() draws something else than denoise() steps"
        )

    def test_what_is_saved_opens_in_diffusers(
        self, made: Any, trainer: Trainer, tmp_path: Path
    ) -> None:
        """The folder is one that the pipeline's own loader takes."""
        import torch

        with trainer.context(**self.filled(made)) as ctx, torch.no_grad():
            model = made.open(ctx)
            latents, t, rows = inputs(model)
            config = ctx.job.scheduler.open(model.info).solver_config((32, 32), 2)
            model.save(tmp_path / "for-diffusers", config)
            pipe = model.pipeline(tmp_path / "for-diffusers")
            _, theirs = model.answer(pipe, list(PROMPTS), latents, t, rows)
            cond = model.condition(model.collate(model.encode_prompts(PROMPTS)), rows)
            assert apart(model.denoise(latents, t, cond), theirs) <= SAME, (
                "the saved folder predicts something else in diffusers"
            )

    def test_adapters_come_back_in_every_layout(
        self, made: Any, trainer: Trainer, tmp_path: Path
    ) -> None:
        """A LoRA of denoiser and text encoders, written, loaded by diffusers, and gone on with."""
        import torch

        for layout in adapter_layouts(made):
            info = made.describe()
            named = info.part_names("denoiser", "text_encoders")
            parts = [part for part in named if part not in info.frozen]
            policy = {"kind": "adapter", "train": parts}
            with trainer.context(freezing=policy, **self.filled(made)) as ctx:
                model, freezing = made.open(ctx), ctx.job.freezing
                freezing.prepare(model, ctx)
                weights = freezing.trainable(model)
                generator = torch.Generator().manual_seed(3)
                with torch.no_grad():
                    for weight in weights.values():
                        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
                artifact = freezing.artifact(model, {n: w.detach() for n, w in weights.items()})
                folder = tmp_path / str(layout.kind)
                folder.mkdir()
                layout.write(artifact, model, folder, ctx, model.info.schedule)
                check = layout.verify(artifact, model, folder, ctx)
                assert check.ok, f"{layout.kind}: {check.message}"
                again, back = made.open(ctx), freezing.at(folder)
                assert back is not None, "the policy cannot begin with what was written"
                back.prepare(again, ctx)
                read = back.trainable(again)
                assert read.keys() == weights.keys(), f"{layout.kind}: other modules come back"
                for name, weight in weights.items():
                    assert torch.allclose(read[name], weight, atol=1e-6), f"{layout.kind}: {name}"


def check_family(model: Model, folder: Path | None = None) -> None:
    """Hold a small model of a family to everything `FamilyConformance` has a test for.

    For a test or a notebook that is no class; `folder` is where runs and files go, a temporary one
    by default. `AssertionError` says what to change.
    """
    suite = FamilyConformance()
    with TemporaryDirectory() as temporary:
        for number, (name, test) in enumerate(tests_of(suite)):
            place = (folder or Path(temporary)) / f"{number:02d}-{name}"
            place.mkdir(parents=True)
            given: dict[str, Any] = {"made": model, "trainer": Trainer(place), "tmp_path": place}
            test(**{name: given[name] for name in list(signature(test).parameters)})


def tests_of(suite: FamilyConformance) -> Iterator[tuple[str, Any]]:
    """Yield the suite's tests by name."""
    for name in sorted(n for n in dir(suite) if n.startswith("test_")):
        yield name.removeprefix("test_"), getattr(suite, name)


def adapter_layouts(model: Model) -> list[Any]:
    """Return the exporters of the adapter layouts that a family names, and diffusers' own."""
    from dreambooth.plugins import component, registry

    kinds, info = registry().kinds("exporter"), model.describe()
    named = ["lora", *(name for name, reason in info.layouts.items() if not reason)]
    fitting = [n for n in named if n in kinds and kinds[n].accepts == {"adapter"}]  # type: ignore[attr-defined]
    return [component("exporter", name) for name in fitting]


def inputs(model: LoadedModel) -> tuple[Tensor, Tensor, list[RowGeometry]]:
    """Return fixed latents [3, C, h, w] that are not square, times [3] and geometries."""
    import torch

    from dreambooth.interfaces import RowGeometry

    spec = model.info.latent
    step = spec.multiple // spec.factor
    height, width = 2 * step, 3 * step
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(PROMPTS), spec.channels, height, width, generator=generator)
    size = (height * spec.factor, width * spec.factor)
    cropped = RowGeometry((3 * size[0], 2 * size[1]), (size[0] // 2, size[1] // 4), size)
    rows = [RowGeometry(size, (0, 0), size), cropped, cropped]
    return latents, times_at(model.info, (0.05, 0.5, 0.95)), rows


def apart(here: Tensor, there: Tensor) -> float:
    """Return the largest difference in standard deviations (absolute where nothing varies).

    Infinity where shapes differ.
    """
    if here.shape != there.shape:
        return float("inf")
    spread = float(there.float().std(correction=0))
    return float((here.float() - there.float()).abs().max()) / (spread or 1.0)
