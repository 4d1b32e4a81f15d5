"""What a model is, as its JSON files tell: what every component's `check` is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Prediction = Literal["epsilon", "v_prediction", "flow"]
Role = Literal["denoiser", "text_encoders", "vae"]
Density = Literal["uniform", "logit_normal", "mode"]
"""How training draws the times s of a flow-matching model, before they are shifted."""


@dataclass(frozen=True)
class LatentSpec:
    """Geometry of the latent space."""

    channels: int
    factor: int
    """Pixels a latent cell covers along one side."""
    multiple: int
    """Height and width in pixels must be multiples of this."""
    patch: int = 1
    """Latent cells along one side that the denoiser reads as one token."""


@dataclass(frozen=True)
class FlowSpec:
    """What a flow-matching family does that its scheduler_config.json does not say."""

    density: Density = "logit_normal"
    """How times are usually drawn in training."""
    mu: Callable[[int, int], float] | None = None
    """The logarithm of the shift by tokens of the picture and sampling steps, where the family has
    a rule of its own; None: the schedule's line from `base_shift` to `max_shift`."""
    steps: int = 28
    """The usual number of sampling steps: training shifts by it, where the shift depends on it."""
    begins: Literal["one", "schedule"] = "one"
    """Where n sampling steps lie before they are shifted: from 1 to 1 / n, or between the ends of
    the schedule's own table."""
    renormalised: bool = False
    """Whether a guided prediction is brought back to the length of the conditional one, token by
    token."""


@dataclass(frozen=True)
class Usual:
    """Settings that are usual for training a family: what `dbt init` writes, and whose they are."""

    source: str = (
        "Ruiz et al. 2023 (arXiv:2208.12242) and diffusers' DreamBooth guide, for Stable Diffusion"
    )
    lora: bool = False
    """Whether an adapter is the usual way, whole weights being more than most machines hold."""
    lr: float = 5e-6
    """Of whole weights."""
    lora_lr: float = 1e-4
    lora_rank: int = 8
    lora_parts: tuple[str, ...] = ("denoiser",)
    class_images: int = 200
    steps: int | None = None
    """None: 200 for each picture, 400 to 1,200."""
    accumulation: int = 1
    sampling_steps: int = 30


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, read from its JSON files alone (no torch, no weights)."""

    family: str
    prediction: Prediction
    schedule: Mapping[str, Any]
    """The model's `scheduler_config.json`."""
    parts: tuple[str, ...]
    """Names of the parts, as diffusers names their folders (`unet`, `text_encoder`, `vae`)."""
    roles: Mapping[Role, tuple[str, ...]]
    """Which parts play which role; a role may be empty (no text encoder) or hold several (SDXL)."""
    latent: LatentSpec
    resolution: int
    """The side in pixels the model was trained at."""
    guidance: Literal["cfg", "embedded", "none"] = "cfg"
    """How the family is guided: two forwards, a guidance value as input (Flux dev), not at all."""
    adapter_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Default adapter target modules of a part."""
    adapter_presets: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Named sets of adapter targets of a part (`attention`, `attention+mlp`, `cross_attention`):
    globs on module names, or on the end of one."""
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Blocks of the denoiser by what they are known to decide (`content`, `style`): globs on
    qualified module names. Empty where nothing is known of the family."""

    layouts: Mapping[str, str] = field(default_factory=dict)
    """File layouts besides a diffusers folder: those that `LoadedModel.convert` knows (`original`)
    and those of adapters (`kohya`). An empty text where this model can be written so, else the
    reason why not."""
    trains: tuple[str, ...] = ()
    """Parts or roles that full training trains where the job names none; empty: the denoiser."""
    pipeline: str = ""
    """diffusers' class that draws with this model; empty where it has none, and where files can
    therefore not be compared with it."""
    absent: tuple[str, ...] = ()
    """Components the pipeline has and this model comes without: it is opened with None for each."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What others call this kind of model: `title` in words, `kohya` in kohya's scripts
    (`ss_base_model_version`), `modelspec` in Stability's ModelSpec. The last two only where those
    programs know a model of this size."""
    learns_words: Mapping[str, str] = field(default_factory=dict)
    """Text encoders that can be given rows for new words, with what a file of learned words calls
    them (`clip_l`); empty where the family learns none."""
    no_words: str = ""
    """Why the family learns none, in words."""
    guidance_default: float = 7.5
    """The guidance scale that is usual for the family."""
    scheduler: str = ""
    """The kind of noise scheduler that is usual for the family; empty: `ddpm`, where the model
    predicts epsilon or v."""
    sampler: str = ""
    """The kind of sampler that is usual; empty: `cfg`, for the same models."""
    usual: Usual = Usual()
    """What is usual besides."""
    distilled: str = ""
    """The base to train instead, where the model draws in few steps and loses that when it is
    trained plainly; empty where it is none of these, or its files do not tell."""
    flow: FlowSpec | None = None
    """How a model is trained and sampled that predicts a flow; None for others."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Text encoders that never train, with what they are (`a T5 encoder`)."""

    embedded: bool = False
    """Whether the model comes with the trainer: it draws harmless things alone, and no safety
    checker looks at its pictures."""

    @property
    def distilled_warning(self) -> str:
        """What is said of a model that was distilled; empty for others."""
        if not self.distilled:
            return ""
        return (
            f"this {self.names.get('title', self.family)} was distilled to draw in few steps, and "
            f"plain training takes that away: train {self.distilled}; its adapters work with both"
        )

    def part_names(self, *parts_or_roles: str) -> tuple[str, ...]:
        """Resolve part and role names to part names; `KeyError` names what is unknown."""
        names: list[str] = []
        for name in parts_or_roles or self.parts:
            if name in self.roles:
                names += self.roles[name]  # type: ignore[index]
            elif name in self.parts:
                names.append(name)
            else:
                raise KeyError(name)
        return tuple(dict.fromkeys(names))
