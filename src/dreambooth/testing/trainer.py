"""A trainer in miniature: a tiny model, three pictures, runs of a second or two."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.jobs.python import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from dreambooth.engine.context import EngineContext
    from dreambooth.interfaces import LoadedModel
    from dreambooth.runs.result import RunResult

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIDE = 32
"""Pixels a side of what the tiny model is trained on here."""


def lay_pictures(folder: Path) -> Path:
    """Write three small pictures with captions into a folder, and return it."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i, color in enumerate(COLORS):
        image = Image.new("RGB", (48, 40), color)
        image.paste((255, 255, 0), (4 * i, 8, 4 * i + 16, 24))
        image.save(folder / f"{i}.png")
        caption = f"picture {i} of {{identifier}} {{class_noun}}"
        (folder / f"{i}.txt").write_text(caption, encoding="utf-8")
    return folder


@cache
def own_cache() -> None:
    """Keep what is built for tests out of the person's own cache, unless one is named."""
    if not os.environ.get("DREAMBOOTH_CACHE"):
        folder = tempfile.mkdtemp(prefix="dreambooth-testing-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["DREAMBOOTH_CACHE"] = folder


@dataclass(frozen=True)
class Ran:
    """What a run left, read back."""

    result: RunResult

    @property
    def losses(self) -> list[float]:
        """`train/loss` of every step."""
        return [value for _, value in self.result.history.get("train/loss", ())]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.result.folder

    @property
    def files(self) -> list[str]:
        """Every file of the run, relative to its folder, sorted."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def weights(self) -> dict[str, Tensor]:
        """Return what trained, by qualified name, as the newest checkpoint holds it."""
        from dreambooth.engine.checkpoints.files import newest

        found = newest(self.folder / "checkpoints", lambda message: None)
        assert found is not None, f"{self.folder} has no checkpoint"
        return dict(found.tensors["trainable"])


class Trainer:
    """Makes jobs on `builtin:tiny`, runs them, opens models and contexts, all below one folder.

    Components that no plugin registered may be passed as they are: `run(loss=Mine())`.
    """

    def __init__(self, folder: Path) -> None:
        own_cache()
        self.folder = folder
        self.pictures = lay_pictures(folder / "pictures")

    def job(self, **sections: Any) -> Job:
        """Return a job; mappings are merged into the defaults, anything else replaces them."""
        base: dict[str, Any] = {
            "name": "tiny",
            "output": self.folder / "runs",
            "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
            "subject": {"identifier": "ohwx", "class_noun": "dog"},
            "data": {"kind": "folder", "path": self.pictures, "resolution": SIDE},
            "prior": {"kind": "generated", "count": 2, "batch_size": 2},
            "sampler": {"kind": "auto", "steps": 2},
            "optimizer": {"kind": "adamw", "lr": 1e-3},
            "samples": {"every": 0, "per_prompt": 1},
            "checkpoints": {"every": 100},
            "log": {"every": 1},
            "train": {"steps": 4, "precision": "fp32", "device": "cpu"},
            "trackers": ["jsonl"],
            "exports": [],
        }
        for name, value in sections.items():
            old = base.get(name)
            if isinstance(value, dict) and isinstance(old, dict):
                same = value.get("kind", old.get("kind")) == old.get("kind")
                value = {**old, **value} if same else value  # noqa: PLW2901
            base[name] = value
        return Job(**base)

    def run(self, **sections: Any) -> Ran:
        """Run `job(**sections)` to its end, going on where a run of its name stopped."""
        from dreambooth.engine.loop import run

        return Ran(run(self.job(**sections)))

    def resumed(self, steps: int = 4, at: int = 2, **sections: Any) -> tuple[Ran, Ran]:
        """Return a run of `steps`, and the same one stopped at step `at` and gone on with."""
        given = dict(sections.pop("train", {}))
        whole = self.run(name="whole", train={**given, "steps": steps}, **sections)
        callbacks = sections.pop("callbacks", [])
        stopping = [*callbacks, stop_at(at)]
        self.run(name="parts", train={**given, "steps": steps}, callbacks=stopping, **sections)
        parts = self.run(
            name="parts", train={**given, "steps": steps}, callbacks=callbacks, **sections
        )
        return whole, parts

    @contextmanager
    def context(self, device: str = "cpu", **sections: Any) -> Iterator[EngineContext]:
        """Yield a run's context for `job(**sections)`, on the CPU or on `meta`."""
        import torch

        from dreambooth.engine.context import EngineContext
        from dreambooth.engine.devices.precision import Precision
        from dreambooth.engine.devices.processes import open_devices
        from dreambooth.engine.reporting import Quiet

        job = self.job(**sections)
        with ExitStack() as stack:
            devices = stack.enter_context(open_devices(job.train))
            where = torch.device(device)
            precision = Precision("fp32", where)
            yield EngineContext(job, where, precision, job.folder, Quiet(), devices)

    @contextmanager
    def model(self, device: str = "cpu", **sections: Any) -> Iterator[LoadedModel]:
        """Yield the tiny model, opened."""
        with self.context(device, **sections) as ctx:
            yield ctx.job.model.open(ctx)


def stop_at(step: int) -> Any:
    """Return a callback that ends a run at a step, so that the same command goes on with it."""
    from dreambooth.interfaces import Callback, Observer, Stop

    class Stopping(Observer):
        def on(self, event: Any, view: Any) -> Any:
            return Stop("the test's first half") if view.step == step else None

    class StopAt(Callback):
        kind: str = "stop_at"

        def open(self, ctx: Any) -> Observer:
            return Stopping()

    return StopAt()


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return the names whose tensors are not equal to the bit, or that one side alone has."""
    import torch

    odd = set(one) ^ set(other)
    odd |= {name for name in set(one) & set(other) if not torch.equal(one[name], other[name])}
    return sorted(odd)
