"""A first job for somebody's pictures: values that suit them, and a comment on each option."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from string import Template
from typing import TYPE_CHECKING

from dreambooth.component.model_info import Usual

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLE_COUNT = 5
"""Pictures of each example (`dreambooth/cli/examples`)."""
BUILTIN = "builtin:emoji-64"


@dataclass(frozen=True)
class Preset:
    """Numbers that belong together for one size of model."""

    resolution: int
    multiple: int
    """Training sides are chosen as multiples of this."""
    prompt: str
    prior_batch: int
    """Class images that are drawn at once."""
    guidance: float
    usual: Usual
    """Numbers where those of the model's family are not known."""
    lr_schedule: str
    batch_size: int
    samples_every: int
    sample_prompts: tuple[str, ...]
    per_prompt: int


# The small base is captioned "a photo of a NOUN on a COLOUR background".
SMALL = Preset(
    resolution=64,
    multiple=16,
    prompt="a photo of a {identifier} {class_noun}",
    prior_batch=20,
    guidance=4.0,
    usual=Usual(
        source="",
        lr=3e-4,
        lora_lr=2e-3,
        lora_parts=("denoiser", "text_encoders"),
        class_images=40,
        steps=400,
        sampling_steps=25,
    ),
    lr_schedule="cosine",
    batch_size=2,
    samples_every=100,
    sample_prompts=(
        "a photo of a {identifier} {class_noun} on a teal background",
        "a photo of a {identifier} {class_noun} on a purple background",
        "a photo of a {class_noun}",
    ),
    per_prompt=4,
)
LARGE = Preset(
    resolution=512,
    multiple=64,
    prompt="a photo of {identifier} {class_noun}",
    prior_batch=4,
    guidance=7.5,
    usual=Usual(),
    lr_schedule="constant",
    batch_size=1,
    samples_every=200,
    sample_prompts=(
        "a photo of {identifier} {class_noun} on the moon",
        "an oil painting of {identifier} {class_noun}",
        "a photo of a {class_noun}",
    ),
    per_prompt=2,
)


@dataclass(frozen=True)
class Starter:
    """What a starting job is written from."""

    name: str
    identifier: str
    class_noun: str
    pictures: str
    """Folder of pictures as the job file names it."""
    count: int
    """Usable pictures in it, as far as their headers tell."""
    resolution: int
    model: str = BUILTIN
    config: str | None = None
    """Configuration of a single file that does not tell its own."""
    guidance: float | None = None
    """Guidance scale that is usual for the model's family; None takes that of its size."""
    usual: Usual | None = None
    """What is usual besides for the family; None takes the numbers of the model's size."""
    lora: bool = False
    """Train an adapter instead of whole parts."""

    @property
    def preset(self) -> Preset:
        """Return the numbers for the model."""
        return preset_for(self.model)

    @property
    def numbers(self) -> Usual:
        """Return the numbers that are usual for the family, or the size."""
        return self.usual or self.preset.usual

    @property
    def steps(self) -> int:
        """Return training steps: the usual number, else 200 a picture, 400 to 1200."""
        return self.numbers.steps or min(1200, max(400, 200 * self.count))


def plain(rate: float) -> str:
    """Write a learning rate as people do: 1e-4."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def preset_for(model: str) -> Preset:
    """Return the numbers for a model: those of the small base for what is built in."""
    return SMALL if model.startswith("builtin:") else LARGE


def pick_resolution(sides: Sequence[int], native: int, multiple: int) -> int:
    """Return the training side for pictures whose shorter sides are `sides`, in pixels.

    The model's own resolution, or less where most pictures are smaller: the largest multiple
    their median covers, but not under half of the model's own, where it draws badly.
    """
    if not sides or median(sides) >= native:
        return native
    fitting = int(median(sides)) // multiple * multiple
    half = -(-native // (2 * multiple)) * multiple
    return max(half, fitting)


def picture_sides(folder: Path) -> list[int]:
    """Return the shorter side in pixels of each picture directly in `folder`, from its header.

    Files that are no pictures are passed over: `dbt validate` and the run name them with reasons.
    """
    from PIL import Image, UnidentifiedImageError

    sides = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            continue
    return sides


def run_name(directory: Path, class_noun: str) -> str:
    """Return a name for the run that is fit for a folder: its folder's, else `my-` and the noun."""
    for text in (directory.absolute().name, f"my {class_noun}"):
        if words := re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-"):
            return words[:100].rstrip("-")
    return "my-subject"


def job_text(starter: Starter) -> str:
    """Return a job file (YAML) with the usual options written out and explained."""
    preset, numbers = starter.preset, starter.numbers
    values = {
        "name": starter.name,
        "model": starter.model,
        "identifier": starter.identifier,
        "class_noun": starter.class_noun,
        "pictures": starter.pictures,
        "prompt": preset.prompt,
        "resolution": starter.resolution,
        "count": numbers.class_images,
        "prior_batch": preset.prior_batch,
        "guidance": preset.guidance if starter.guidance is None else starter.guidance,
        "sampling_steps": numbers.sampling_steps,
        "steps": starter.steps,
        "accumulation": numbers.accumulation,
        "batch_size": preset.batch_size,
        "every": preset.samples_every,
        "per_prompt": preset.per_prompt,
    }
    written = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    rate = numbers.lora_lr if starter.lora else numbers.lr
    written |= {"lr": plain(rate), "lr_schedule": preset.lr_schedule}
    parts = f"[{', '.join(numbers.lora_parts)}]"
    freezing = _LORA if starter.lora else _WHOLE
    written["freezing"] = freezing.format(parts=parts, rank=numbers.lora_rank)
    written["source"] = f"# Numbers are those of {numbers.source}.\n" if starter.usual else ""
    config = f"\n  config: {json.dumps(starter.config)} ¦ what kind of model the file holds"
    written["config"] = config if starter.config else ""
    written["prompts"] = "\n".join(f"    - {json.dumps(p)}" for p in preset.sample_prompts)
    return "".join(map(_aligned, _TEMPLATE.substitute(written).splitlines()))


def _aligned(line: str) -> str:
    """Turn the template's comment mark into a comment in a common column."""
    option, mark, comment = line.rpartition(" ¦ ")
    return f"{option:<29} # {comment}\n" if mark else f"{line}\n"


_WHOLE = """\
freezing:
  kind: components ¦ `dbt plugins list` shows what else is installed
  train: auto ¦ or [unet] alone: takes less memory and learns a little less"""
_LORA = """\
freezing:
  kind: adapter ¦ a small file beside the model; `dbt plugins list` shows more
  method: {{kind: lora, rank: {rank}}} ¦ higher: more detail, and more of the background
  train: {parts} ¦ with text_encoder it comes closer, and keeps less of the class"""

_TEMPLATE = Template("""\
# yaml-language-server: $$schema=./job.schema.json
# A DreamBooth job. Check it with `dbt validate`, train it with `dbt run`; paths start here.
# Prompts fill in {identifier} and {class_noun}. What is left out takes its default.
${source}version: 1
name: $name ¦ the run's folder below `output`
output: runs

model:
  kind: auto ¦ the family is found out from the files
  source: $model ¦ or a diffusers folder, a .safetensors file, a hub id$config

subject:
  identifier: $identifier ¦ a rare word (auto: one is chosen) that will mean your subject alone
  class_noun: $class_noun ¦ what it is, in one plain noun: nothing matters more

data:
  kind: folder
  path: $pictures ¦ 3-5 pictures; captions beside them (01.txt for 01.png) are used
  prompt: $prompt ¦ for pictures without a caption
  resolution: $resolution ¦ side in pixels, or [height, width]
  crop: center ¦ center | random (a new crop each step; latents are not cached)
  flip: false ¦ also train on mirrored pictures; not for faces, text or logos
  broken: quarantine ¦ damaged pictures: quarantine (leave out and say so) | refuse

prior: ¦ keeps the class: without it every other one may turn into yours
  kind: generated ¦ class images drawn from the model before it is trained; or: none
  prompt: "a photo of a {class_noun}"
  count: $count ¦ class images; made once and kept for later runs
  batch_size: $prior_batch ¦ how many are drawn at once

$freezing

loss:
  kind: prior_preservation
  prior_weight: 1.0 ¦ weight of class images against your pictures

scheduler: {kind: auto} ¦ the noise scheduler of training: that of the model's family

sampler:
  kind: auto
  guidance_scale: $guidance ¦ how strongly pictures follow the prompt
  steps: $sampling_steps ¦ sampling steps a picture

optimizer:
  kind: adamw
  lr: $lr ¦ too high: burnt, alike pictures; too low: not your subject yet
lr_schedule: {kind: $lr_schedule, warmup_steps: 0}

train:
  steps: $steps ¦ optimizer steps
  batch_size: $batch_size ¦ your pictures a step; as many class images come on top
  accumulation: $accumulation ¦ batches summed up before an update: a larger batch in less memory
  precision: auto ¦ auto | fp32 | bf16 | fp16
  seed: 0 ¦ the same seed draws the same noise, crops and samples

samples:
  every: $every ¦ pictures to look at while it trains; 0: none
  per_prompt: $per_prompt
  prompts:
$prompts

checkpoints:
  every: auto ¦ by the clock, or a number of steps; a run goes on from the newest
  keep_last: 2

trackers: [tensorboard, jsonl]
exports: auto ¦ the file formats that suit what was trained
""")
