"""What the recipe can be told: typed, with the values the shipped model was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dreambooth_plugins.base_emoji.nouns import NOUNS, SUBJECTS

HERE = Path(__file__).parent
STAGES = ("data", "vae", "clip", "unet", "check")


class Section(BaseModel):
    """A group of settings; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VAESettings(Section):
    """The autoencoder: 64 x 64 pixels to 16 x 16 latents of four channels."""

    widths: tuple[int, ...] = (32, 64, 96)
    minutes: float = Field(22, gt=0)
    pictures: int = Field(12_000, ge=64)
    """How many compositions it sees (over and over)."""
    batch: int = Field(12, ge=1)
    crop: int = Field(32, multiple_of=8)
    """Edge of the random crops of the first part; the network is convolutional."""
    crop_share: float = Field(0.8, ge=0, le=1)
    lr: float = Field(8e-4, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)
    """Rate of the orthogonalised updates of weight matrices; 0: AdamW for everything."""
    kl_weight: float = Field(1e-6, ge=0)


class CLIPSettings(Section):
    """The text encoder's first teacher, and the judge of the figures."""

    width: int = 192
    text_layers: int = 3
    vision_layers: int = 4
    patch: int = 16
    vocabulary: int = Field(1200, ge=600)
    max_length: int = 24
    minutes: float = Field(10, gt=0)
    batch: int = Field(48, ge=2)
    lr: float = Field(1e-3, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)


class UNetSettings(Section):
    """The denoiser, trained together with the text encoder on cached latents."""

    nouns: tuple[str, ...] = tuple(NOUNS)
    """Class nouns it learns to draw. Fewer are learnt better in the same time."""
    widths: tuple[int, ...] = (48, 96, 192)
    """Channels at 16 x 16, 8 x 8 and 4 x 4; the first ones are what sampling costs."""
    minutes: float = Field(170, gt=0)
    pictures: int = Field(24_000, ge=64)
    batch: int = Field(48, ge=2)
    lr: float = Field(7e-4, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)
    text_rate: float = Field(0.5, ge=0)
    """Rate of the text encoder as a share of the UNet's."""
    empty_prompts: float = Field(0.1, ge=0, lt=1)
    """Share of the rows without a prompt: what guidance steers away from."""
    min_snr_gamma: float = Field(5.0, gt=0)
    decay_share: float = Field(0.5, gt=0, le=1)
    """Last part of the steps, over which the rates fall to nothing."""
    ema: float = Field(0.998, ge=0, lt=1)


class CheckSettings(Section):
    """How much the figures are measured on."""

    heldout: int = Field(400, ge=8)
    prompts: int = Field(200, ge=4)
    diversity: int = Field(48, ge=4)
    steps: int = Field(25, ge=1)
    guidance: float = Field(4.0, ge=1)
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    """Unseen subjects that DreamBooth is tried on, with and without prior preservation."""
    train_steps: int = Field(400, ge=1)
    """Steps of each; the example job's."""


class RecipeSettings(Section):
    """The whole recipe. The same settings and seed give the same run."""

    work: Path = Path("emoji-work")
    """Folder of the training state; running again with the same folder goes on from there."""
    npm: Path | None = None
    """Folder with the two packages' `.tgz` files; they are fetched with `npm pack` if missing."""
    out: Path = HERE
    """Where `emoji-64/` and `emoji-64-clip/` are written."""
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` times one batch in either precision and takes the faster one."""
    save_every: float = Field(120, gt=0)
    """Seconds between two saved states."""
    sample_every: float = Field(420, gt=0)
    """Seconds between two sheets of samples."""
    vae: VAESettings = VAESettings()
    clip: CLIPSettings = CLIPSettings()
    unet: UNetSettings = UNetSettings()
    check: CheckSettings = CheckSettings()

    @property
    def packages(self) -> Path:
        """Return the folder of the npm packages."""
        return self.npm or self.work / "npm"
