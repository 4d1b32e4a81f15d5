"""What each freezing policy costs and gives on the embedded base: `make policies`.

Trains the example's pictures with each policy under otherwise equal jobs, draws with the result,
and prints one markdown table. Likeness is judged by the small CLIP that was trained beside the
base: figures compare with each other, not with those of other judges.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from transformers import CLIPModel

import dreambooth
from dreambooth import Job
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.exports import export_all
from dreambooth.engine.results.samples import evaluating
from dreambooth.engine.session import Session, open_session
from dreambooth.engine.step import train_step
from dreambooth.runs.folder import RunFolder
from emoji_recipe import autoencoder, clip
from emoji_recipe.measures import likeness, spread
from emoji_recipe.nouns import with_article
from emoji_recipe.settings import BASES

NOUN, WORD = "octopus", "ohwx"
CLASS = f"a photo of {with_article(NOUN)}"
PICTURES = Path(dreambooth.__file__).parent / "cli" / "examples" / NOUN
SIDE = 64
DRAWN = 16
"""Pictures a prompt."""
LORA = {"kind": "lora", "rank": 8}
BOTH = ["unet", "text_encoder"]
A1111 = "embeddings"
"""Folder in which the `embedding` format writes the word once more, in A1111's layout."""


@dataclass(frozen=True)
class Policy:
    """A row of the table."""

    name: str
    freezing: dict[str, Any]
    lr: float


POLICIES = (
    Policy("`components`: UNet and text encoder", {"kind": "components", "train": BOTH}, 3e-4),
    Policy("`components`: UNet", {"kind": "components", "train": ["unet"]}, 3e-4),
    Policy("`adapter`: LoRA, rank 8", {"kind": "adapter", "method": LORA}, 2e-3),
    Policy(
        "`adapter`: LoRA, rank 8, text encoder too",
        {"kind": "adapter", "method": LORA, "train": BOTH}, 2e-3,
    ),
    Policy("`adapter`: DoRA, rank 8", {"kind": "adapter", "method": {"kind": "dora"}}, 2e-3),
    Policy("`adapter`: LoKr", {"kind": "adapter", "method": "lokr"}, 1e-2),
    Policy(
        "`adapter`: OFT, blocks of 8",
        {"kind": "adapter", "method": {"kind": "oft", "block_size": 8}}, 3e-3,
    ),
    Policy("`block_preset`: content", {"kind": "block_preset", "blocks": ["content"]}, 2e-3),
    Policy("`block_preset`: style", {"kind": "block_preset", "blocks": ["style"]}, 2e-3),
    Policy("`cross_attention`", {"kind": "cross_attention"}, 1e-3),
    Policy("`patterns`: all attention", {"kind": "patterns", "train": ["unet.*.attn?.*"]}, 1e-3),
    Policy("`token`", {"kind": "token"}, 1e-2),
    Policy("`token`, three rows", {"kind": "token", "vectors": 3}, 1e-2),
    Policy(
        "`pivotal`: token and LoRA together",
        {"kind": "pivotal", "method": LORA, "lr": {"token": 1e-2}}, 2e-3,
    ),
    Policy(
        "`pivotal`: token, then LoRA",
        {"kind": "pivotal", "method": LORA, "lr": {"token": 1e-2},
         "until": {"token": 0.5}, "start": {"unet": 0.5}}, 2e-3,
    ),
)  # fmt: skip


@dataclass
class Figures:
    """What is measured of one policy."""

    name: str
    trainable: int = 0
    size: int = 0
    seconds: list[float] = field(default_factory=list)
    similarity: float = 0.0
    drift: float = 0.0

    def line(self) -> str:
        """Return the row of the table."""
        speed = f"{1 / median(self.seconds):.1f}" if self.seconds else "-"
        size = f"{self.size / 1e6:.3g} MB" if self.size >= 1e6 else f"{self.size / 1e3:.3g} kB"
        return (
            f"| {self.name} | {self.trainable:,} | {size} | {speed} | {self.similarity:.3f} "
            f"| {self.drift:.3f} |"
        )


def make_job(work: Path, policy: Policy, steps: int, seed: int) -> Job:
    """Return the example's job with another policy."""
    return Job(
        name="run",
        output=work,
        model={"kind": "stable_diffusion", "source": "builtin:emoji-64"},
        subject={"identifier": WORD, "class_noun": NOUN},
        data={"kind": "folder", "path": PICTURES, "resolution": SIDE},
        prior={"kind": "generated", "prompt": CLASS, "count": 40, "batch_size": 20},
        freezing=policy.freezing,
        sampler={"kind": "cfg", "guidance_scale": 4.0, "steps": 15},
        optimizer={"kind": "adamw", "lr": policy.lr},
        lr_schedule="cosine",
        train={"steps": steps, "batch_size": 2, "precision": "fp32", "seed": seed},
        samples={"every": 0},
        trackers=[],
    )


@torch.no_grad()
def draw(s: Session, prompt: str) -> torch.Tensor:
    """Return pictures [DRAWN, 3, SIDE, SIDE] in [-1, 1] of a prompt, from seeds 0, 1, ..."""
    job = s.job
    config = s.schedule.solver_config(job.data.size, job.sampler.sampling_steps())
    with evaluating(s.model), s.stages.without_kept_texts():
        latents = job.sampler.sample(
            s.model,
            [prompt] * DRAWN,
            seeds=range(DRAWN),
            size=job.data.size,
            solver_config=config,
            ctx=s.ctx,
        )
        return s.model.decode(latents)


def bytes_of(s: Session) -> int:
    """Return the bytes of what the run exports in the format that `exports: auto` takes, a word
    in one of its two layouts."""
    [made] = export_all(s, RunFolder(s.ctx.folder))
    files = [file for file in made.folder.rglob("*.safetensors") if file.parent.name != A1111]
    return sum(file.stat().st_size for file in files)


def measure(s: Session, judge: Any, name: str, seen: Seen) -> Figures:
    """Train, export and draw."""
    found = Figures(name, sum(p.numel() for p in s.state.parameters.values()))
    for _ in range(s.job.train.steps):
        began = time.perf_counter()
        train_step(s)
        found.seconds.append(time.perf_counter() - began)
    found.size = bytes_of(s)
    found.similarity = likeness(judge, draw(s, f"a photo of a {WORD} {NOUN}"), seen.real)
    found.drift = apart(judge, draw(s, CLASS), seen.base)
    return found


@torch.no_grad()
def apart(judge: Any, pictures: torch.Tensor, base: torch.Tensor) -> float:
    """Return 1 - the mean cosine of the judge's embeddings of pictures from equal seeds."""
    return 1 - float(
        (clip.image_features(judge, pictures) * clip.image_features(judge, base)).sum(1).mean()
    )


@dataclass(frozen=True)
class Seen:
    """What policies are compared with."""

    real: torch.Tensor
    """The example's pictures."""
    base: torch.Tensor
    """What the base draws for the class prompt."""


@contextmanager
def opened(job: Job) -> Iterator[Session]:
    """Set a job up on this machine."""
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        yield open_session(ctx, job.data.scan(ctx))


def instances() -> torch.Tensor:
    """Return the example's pictures [5, 3, SIDE, SIDE] in [-1, 1], at the size they train at."""
    shown = [Image.open(file).convert("RGB") for file in sorted(PICTURES.glob("*.png"))]
    small = [image.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in shown]
    return autoencoder.to_float(autoencoder.stacked([np.asarray(p) for p in small]))


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps a policy.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the runs.")] = 0,
    only: Annotated[str, typer.Option(help="Policies whose name holds this.")] = "",
) -> None:
    """Print one markdown table."""
    judge = CLIPModel.from_pretrained(BASES / "emoji-64-clip").eval()
    chosen = [policy for policy in POLICIES if only in policy.name]
    with tempfile.TemporaryDirectory() as name:
        with opened(make_job(Path(name), POLICIES[0], steps, seed)) as s:
            seen = Seen(instances(), draw(s, CLASS))
        print("| policy | trainable parameters | file | steps/s | similarity | prior drift |")
        print("|---|---|---|---|---|---|")
        before = likeness(judge, seen.base, seen.real)
        print(f"| none: the base's own {NOUN} | 0 | - | - | {before:.3f} | 0.000 |", flush=True)
        for number, policy in enumerate(chosen):
            with opened(make_job(Path(name) / str(number), policy, steps, seed)) as s:
                print(measure(s, judge, policy.name, seen).line(), flush=True)
        print(f"| the pictures themselves | - | - | - | {1 - spread(judge, seen.real):.3f} | - |")
    print(
        f"\n{date.today()}, {torch.get_num_threads()} threads of {platform.machine()}, torch "
        f"{torch.__version__}, float32: {steps} steps of 2 + 2 pictures, {DRAWN} pictures drawn"
    )


if __name__ == "__main__":
    typer.run(main)
