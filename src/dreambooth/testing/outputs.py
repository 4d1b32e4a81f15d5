"""What a run gives away: files, numbers, and what it lets others see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from dreambooth.testing.base import Conformance

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.testing.trainer import Trainer

POLICIES: dict[str, Any] = {
    "weights": {"kind": "components"},
    "adapter": {"kind": "adapter", "method": {"kind": "lora", "rank": 2}},
    "embedding": {"kind": "token"},
}
"""A policy of our own that ends in each kind of artifact."""


class ExporterConformance(Conformance):
    """A format writes files that read back as the live model, and notices where they do not."""

    slot: ClassVar[str] = "exporter"

    def filled(self, made: Any) -> dict[str, Any]:
        """Return a job whose policy ends in what the format takes."""
        kind = sorted(made.accepts)[0]
        freezing = self.sections.get("freezing", POLICIES.get(kind))
        assert freezing, f"accepts {kind!r}, which no policy here makes: set `sections`"
        return {"prior": "none", **self.sections, "freezing": freezing, "exports": [made]}

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Say whether it can express what a policy makes."""
        return made.refusal(trainer.job(**self.filled(made)).freezing)

    def test_it_writes_files_that_read_back(self, made: Any, trainer: Trainer) -> None:
        """The first export lies in `final/`, and was compared."""
        ran = trainer.run(**self.filled(made))
        assert any(name.startswith("final/") for name in ran.files)
        [said] = ran.result.checks
        assert said.removeprefix(f"{made.kind}:").strip(), (
            "verify() returned a Check without a message: say what was compared and how far apart "
            "it was"
        )

    def test_it_notices_files_that_are_not_the_model(self, made: Any, trainer: Trainer) -> None:
        """A check that cannot fail tells nothing: the weights are set to zero in the files."""
        from dreambooth.engine.reporting import Quiet
        from dreambooth.engine.results.exports import export_run
        from dreambooth.errors import RunError
        from dreambooth.runs.finding import open_run

        ran = trainer.run(**{**self.filled(made), "exports": []})
        folder, job = open_run(ran.folder)
        write = type(made).write

        def spoilt(self: Any, artifact: Any, model: Any, dest: Path, *rest: Any) -> None:
            write(self, artifact, model, dest, *rest)
            zero_weights(dest)

        broken: Any = type("Spoilt", (type(made),), {"write": spoilt, "__module__": __name__})
        exporter = broken.model_construct(**dict(made))
        try:
            export_run(folder, job, exporter, Quiet(), dest=trainer.folder / "spoilt")
        except RunError:
            return
        raise AssertionError(
            "verify() is content with files whose weights are all zero: load them back as another "
            "tool would and compare what comes out with the live model"
        )


def zero_weights(folder: Path) -> None:
    """Set every tensor of every safetensors file below a folder to zero."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
        save_file({name: 0 * t for name, t in load_file(path).items()}, path, metadata)


class CallbackConformance(Conformance):
    """An observer's state is JSON that it takes back, and a run with it resumes exactly."""

    slot: ClassVar[str] = "callback"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Open it and show it two events."""
        with trainer.context(**self.filled(made)) as ctx:
            observer = made.open(ctx)
            for number, event in enumerate(("start", "step", "log")):
                observer.on(event, self.view(ctx, number))
            return observer

    def view(self, ctx: Any, step: int) -> Any:
        """Return what an observer sees at a step."""
        from dreambooth.interfaces import RunView

        return RunView(ctx.job, step, 4, {"train/loss": 0.5, "train/lr": 1e-3}, ctx.folder)

    def test_its_state_comes_back(self, made: Any, trainer: Trainer) -> None:
        """A checkpoint keeps it as JSON."""
        observer = self.exercise(made, trainer)
        state = observer.state()
        with trainer.context(**self.filled(made)) as ctx:
            fresh = made.open(ctx)
            fresh.load_state(json.loads(json.dumps(state)))
            assert fresh.state() == state, (
                "load_state(state()) does not give state() again: a resumed run would forget"
            )

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """It may watch and stop, not change what is learned."""
        self.two_runs(made, trainer)


class TrackerConformance(Conformance):
    """A tracker takes numbers, pictures and texts, goes on after a stop, and changes no run."""

    slot: ClassVar[str] = "tracker"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Open it, write of everything, close it, and go on from step 1."""
        from PIL import Image

        with trainer.context(**self.filled(made)) as ctx:
            ctx.folder.mkdir(parents=True, exist_ok=True)
            for resume_step in (0, 1):
                writer = made.open(ctx, resume_step)
                for step in (resume_step + 1, resume_step + 2):
                    writer.scalars(step, {"train/loss": 0.5, "odd": float("nan")})
                writer.images(2, "samples", [Image.new("RGB", (8, 8))], ["a dog"])
                writer.text("job", "name: tiny")
                writer.flush()
                writer.close()

    def test_it_writes_and_goes_on(self, made: Any, trainer: Trainer) -> None:
        """Numbers that are not finite, too."""
        self.exercise(made, trainer)

    def test_a_run_with_it_resumes_exactly(self, made: Any, trainer: Trainer) -> None:
        """It only listens."""
        both = [*({"jsonl"} - {made.kind}), made]
        self.two_runs(made, trainer, trackers=both)


class MetricConformance(Conformance):
    """A metric is a function of the pictures it is given."""

    slot: ClassVar[str] = "metric"

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Score two prompts of two pictures."""
        from PIL import Image

        def picture(red: int) -> Any:
            return (
                Image.linear_gradient("L")
                .resize((32, 32))
                .convert("RGB")
                .point(lambda value: (value + red) % 256)
            )

        samples = {"a dog": [picture(0), picture(40)], "a cat": [picture(90), picture(150)]}
        with trainer.context(**self.filled(made)) as ctx:
            return made.score(samples, [picture(10), picture(20)], ctx)

    def test_it_scores_and_says_the_same_again(self, made: Any, trainer: Trainer) -> None:
        """Finite numbers by name."""
        scores = self.exercise(made, trainer)
        assert scores, "score() returned no number"
        assert scores == self.exercise(made, trainer), "score() says something else each time"

    def test_a_run_logs_it(self, made: Any, trainer: Trainer) -> None:
        """Under `metric/...`, at each set of samples."""
        samples = {"every": 4, "per_prompt": 2}
        ran = trainer.run(**self.filled(made), samples=samples, prior="none")
        named = [name for name in ran.result.history if name.startswith("metric/")]
        assert named, "no number of the metric was logged"
