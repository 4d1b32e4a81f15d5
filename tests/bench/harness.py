"""One call of the bench: its rows, its jobs, and the processes it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import models

HERE = Path(__file__).parent
LORA = {"kind": "adapter", "train": ["unet"], "method": {"kind": "lora", "rank": 4, "alpha": 4}}
"""What diffusers' script trains by default."""


@dataclass
class Row:
    """One measured figure."""

    what: str
    value: float | None
    unit: str
    goal: float | None = None
    at_least: bool = False
    """The goal is a lower bound; else an upper one."""
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Say whether the goal is met; None without a goal or a figure."""
        if self.goal is None or self.value is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def ratio(what: str, pairs: list[float], goal: float, *, at_least: bool, note: str = "") -> Row:
    """Return the median of ratios as a row."""
    return Row(what, median(pairs), "x", goal, at_least, (min(pairs), max(pairs)), note)


@dataclass
class Bench:
    """One call of the bench."""

    size: models.Size
    model: Path
    work: Path
    pairs: int
    scripts: Path | None
    rows: list[Row] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """How often whole processes are compared, in turn; one does where a step takes seconds."""
        return 3 if self.size.name == "small" else 1

    def job(self, name: str, **sections: Any) -> Path:
        """Write a job file and return it."""
        path = self.work / f"{name}.json"
        values = models.job_values(self.size, self.model, self.work, name, **sections)
        path.write_text(models.as_json(values))
        return path

    def call(self, *command: object, cache: str = "cache", **env: str) -> tuple[str, float]:
        """Run a command; return what it printed last and its wall-clock seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "DREAMBOOTH_CACHE": str(self.work / cache), "NO_COLOR": "1", **env},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        lines = done.stdout.splitlines()
        return lines[-1] if lines else "", time.monotonic() - began

    def measured(self, *command: object) -> dict[str, Any]:
        """Run one of the measuring scripts and return its JSON."""
        said, _ = self.call(HERE / command[0], *command[1:])
        result: dict[str, Any] = json.loads(said)
        return result

    def peer(
        self,
        name: str,
        *options: str,
        script: str = "train_dreambooth.py",
        class_folder: Path | None = None,
    ) -> dict[str, Any]:
        """Run diffusers' script on the same pictures and return its marks.

        It draws class images itself where `class_folder` has too few.
        """
        assert self.scripts is not None
        record, out = self.work / f"peer-{name}.json", self.work / f"peer-{name}"
        size = self.size
        ready = models.pictures(self.work, size.class_images, size.resolution)
        arguments = [
            f"--pretrained_model_name_or_path={self.model}",
            f"--instance_data_dir={models.pictures(self.work, 5, size.resolution)}",
            "--instance_prompt=a photo of ohwx dog",
            "--with_prior_preservation",
            f"--class_data_dir={class_folder or ready}",
            "--class_prompt=a photo of a dog",
            f"--num_class_images={size.class_images}",
            f"--output_dir={out}",
            f"--resolution={size.resolution}",
            f"--train_batch_size={size.rows}",
            f"--max_train_steps={size.steps}",
            "--learning_rate=1e-6",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            "--checkpointing_steps=100000",
            "--seed=0",
            *options,
        ]
        _, wall = self.call(HERE / "peer.py", record, self.scripts / script, *arguments)
        return {**json.loads(record.read_text()), "wall": wall}


def step_seconds(marks: dict[str, Any], skip: int) -> list[float]:
    """Return the seconds of the peer's steps, without the first ones."""
    steps = marks["steps"]
    return [b - a for a, b in pairwise(steps)][skip - 1 :]
