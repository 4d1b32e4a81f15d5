"""What looks at pictures: safety checkers, captioners, maskers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dreambooth.testing.base import Conformance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.testing.trainer import Trainer

DEVICE = "cpu"
SAME = 1e-5


def pictures() -> list[Any]:
    """Return three RGB pictures of different sizes."""
    from PIL import Image

    grey = Image.linear_gradient("L")
    sides = ((48, 40), (40, 56), (32, 32))
    plain = [grey.resize(side).rotate(90 * i) for i, side in enumerate(sides)]
    return [
        Image.merge("RGB", (image, image.point(lambda v: v // 2), image.point(lambda v: 255 - v)))
        for image in plain
    ]


class _Looking(Conformance):
    """A picture's answer is its own, and the same each time."""

    def ask(self, made: Any, images: Sequence[Any]) -> Any:
        """Return the component's answers."""
        raise NotImplementedError

    def same(self, one: Any, other: Any) -> bool:
        """Say whether two answers are equal."""
        return bool(one == other)

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Ask of three pictures."""
        return self.ask(made, pictures())

    def test_a_pictures_answer_is_its_own(self, made: Any) -> None:
        """However many pictures are beside it."""
        images = pictures()
        before = [image.tobytes() for image in images]
        together = self.ask(made, images)
        assert [image.tobytes() for image in images] == before, (
            "the pictures themselves were changed: work on a copy"
        )
        for image, one in zip(images, together, strict=True):
            [alone] = self.ask(made, [image])
            assert self.same(one, alone), (
                "a picture's answer depends on the pictures beside it, or is another one each "
                "time: ask of one after the other, and draw nothing by lot"
            )

    def test_it_takes_no_picture(self, made: Any) -> None:
        """An empty list gets an empty answer."""
        assert len(self.ask(made, [])) == 0


class SafetyConformance(_Looking):
    """A checker gives a score a picture, and what is unsafe is treated as the action says."""

    slot: ClassVar[str] = "safety"

    def ask(self, made: Any, images: Sequence[Any]) -> Any:
        """Return scores."""
        return made.scores(images, DEVICE)

    def same(self, one: Any, other: Any) -> bool:
        """Compare two scores."""
        return bool(abs(one - other) <= SAME * max(1.0, abs(one)))

    def test_pictures_are_shown_as_the_action_says(self, made: Any, trainer: Trainer) -> None:
        """With the threshold just below a picture's score it is unsafe, just above it is not."""
        from dreambooth.engine.results.safety import judge

        image = pictures()[0]
        [score] = self.ask(made, [image])
        with trainer.context() as ctx:
            for action, kept in (("flag", True), ("blur", False), ("refuse", False)):
                low = {"action": action, "threshold": score - 0.01}
                [(shown, verdict)] = judge(ctx, made.model_copy(update=low), [image])
                assert verdict.unsafe
                assert (shown.tobytes() == image.tobytes()) is kept
                high = {"action": action, "threshold": score + 0.01}
                [(shown, verdict)] = judge(ctx, made.model_copy(update=high), [image])
                assert not verdict.unsafe, "a score below the threshold counts as unsafe"
                assert shown.tobytes() == image.tobytes()


class CaptionerConformance(_Looking):
    """A captioner says one line a picture, and a data source reads what is written of it."""

    slot: ClassVar[str] = "captioner"

    def ask(self, made: Any, images: Sequence[Any]) -> Any:
        """Return captions."""
        return made.captions(images, DEVICE)

    def test_what_it_says_is_read_as_captions(self, made: Any, trainer: Trainer) -> None:
        """`dbt doctor --captions` writes it beside the pictures."""
        from dreambooth.cli.doctor.looking import add_sidecars

        for path in trainer.pictures.glob("*.txt"):
            path.unlink()
        job = trainer.job()
        written = add_sidecars(job.data, job, None, None, made).written
        with trainer.context() as ctx:
            items = job.data.scan(ctx).items
        said = {i.path.with_suffix(".txt"): i.caption for i in items if i.path and i.caption}
        assert {sidecar.path for sidecar in written} == set(said)
        assert all("{identifier}" in caption for caption in said.values())


class MaskerConformance(_Looking):
    """A masker gives a mask of each picture's size, and a data source reads what is written."""

    slot: ClassVar[str] = "masker"

    def ask(self, made: Any, images: Sequence[Any]) -> Any:
        """Return masks."""
        return made.masks(images, DEVICE)

    def same(self, one: Any, other: Any) -> bool:
        """Compare two masks."""
        return bool(abs(one - other).max() <= SAME)

    def test_what_it_finds_is_read_as_masks(self, made: Any, trainer: Trainer) -> None:
        """`dbt doctor --masks` writes it beside the pictures."""
        from dreambooth.cli.doctor.looking import add_sidecars

        job = trainer.job(data={"mask": "file"})
        written = add_sidecars(job.data, job, None, made, None).written
        assert written, "it found a subject in none of three pictures with a yellow square"
        with trainer.context(data={"mask": "file"}) as ctx:
            items = ctx.job.data.scan(ctx).items
        assert {sidecar.path for sidecar in written} == {item.mask for item in items if item.mask}
