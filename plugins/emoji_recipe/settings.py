"""What the recipe can be told: typed, with the values the shipped model is trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from emoji_recipe.nouns import SUBJECTS

BASES = Path(__file__).parents[1] / "dreambooth_plugins" / "base_emoji"
STAGES = ("data", "autoencoder", "clip", "denoiser", "export", "check")
HANDOVER = ("unpack",)


class Section(BaseModel):
    """A group of settings; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(Section):
    """What every trained stage has: its length in steps, and the shape of its rate."""

    steps: int = Field(ge=1)
    """Length of the stage. Counted in steps, so that the same settings give the same weights on a
    fast machine and on a busy one."""
    decay_share: float = Field(1.0, gt=0, le=1)
    """Last part of the steps, over which the rates fall to nothing."""
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    matrix_lr: float = Field(ge=0)
    """Rate of the orthogonalised updates of weight matrices; 0: AdamW for everything."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the average of the weights that is measured and shipped; 0: the weights."""


class AutoencoderSettings(Training):
    """The autoencoder: 128 x 128 pixels to 16 x 16 latents."""

    steps: int = Field(6_500, ge=1)
    batch: int = Field(12, ge=1)
    lr: float = Field(8e-4, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)
    decay_share: float = Field(0.7, gt=0, le=1)
    ema: float = Field(0.998, ge=0, lt=1)
    widths: tuple[int, ...] = (24, 48, 96, 128)
    channels: int = Field(16, ge=1)
    """Latent channels."""
    crop: int = Field(64, multiple_of=8)
    """Edge of the random crops of the first part; the network is convolutional."""
    crop_share: float = Field(0.85, ge=0, le=1)
    kl_weight: float = Field(1e-6, ge=0)
    compositions: int = Field(4_000, ge=8)
    leaves: int = Field(1_500, ge=0)
    photographs: int = Field(3_500, ge=0)
    """How many pictures of each kind it sees (over and over). Crops of photographs need
    scikit-image's wheel."""


class CLIPSettings(Training):
    """The text encoder's first teacher, and the judge of the figures."""

    steps: int = Field(1_500, ge=1)
    batch: int = Field(48, ge=2)
    lr: float = Field(1e-3, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)
    decay_share: float = Field(0.7, gt=0, le=1)
    width: int = 192
    text_layers: int = 3
    vision_layers: int = 4
    patch: int = 16
    pictures: int = Field(0, ge=0)
    """Compositions drawn beforehand, of which steps take random ones; 0: fresh ones every step,
    which cost a card more than its step."""
    vocabulary: int = Field(1600, ge=600)
    max_length: int = 24


class DenoiserSettings(Training):
    """The denoiser, trained together with the text encoder on latents of fresh compositions."""

    steps: int = Field(60_000, ge=1)
    batch: int = Field(48, ge=2)
    lr: float = Field(7e-4, gt=0)
    matrix_lr: float = Field(2e-3, ge=0)
    decay_share: float = Field(0.3, gt=0, le=1)
    ema: float = Field(0.999, ge=0, lt=1)
    network: Literal["unet", "dit"] = "unet"
    objective: Literal["epsilon", "v_prediction", "flow"] = "v_prediction"
    widths: tuple[int, ...] = (64, 128, 192)
    """Channels at 16 x 16, 8 x 8 and 4 x 4; the first ones are what sampling costs."""
    layers: int = Field(1, ge=1)
    """Residual blocks a level; blocks of a DiT."""
    block: int = Field(4_000, ge=64)
    """Compositions drawn and encoded at a time."""
    blocks: int = Field(6, ge=1)
    """How many of the newest blocks rows are drawn from."""
    refresh: int = Field(800, ge=1)
    """Steps after which the next block is drawn: it never sees the same pictures for long."""
    text_rate: float = Field(0.5, ge=0)
    """Rate of the text encoder as a share of the denoiser's."""
    empty_prompts: float = Field(0.1, ge=0, lt=1)
    """Share of the rows without a prompt: what guidance steers away from."""
    min_snr_gamma: float = Field(5.0, gt=0)


class CheckSettings(Section):
    """How much the figures are measured on."""

    heldout: int = Field(400, ge=8)
    prompts: int = Field(240, ge=4)
    pairs: int = Field(96, ge=2)
    diversity: int = Field(48, ge=4)
    steps: int = Field(25, ge=1)
    guidance: float = Field(4.0, ge=1)
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    """Unseen subjects that DreamBooth is tried on, with and without prior preservation."""
    train_steps: int = Field(400, ge=1)
    """Steps of each; the example job's."""
    photographs: Path | None = None
    """A folder of photographs (`*/*.jpg`) that the autoencoder has never seen."""


class RecipeSettings(Section):
    """The whole recipe. The same settings and seed give the same run."""

    work: Path = Path("emoji-work")
    """Folder of the training state; running again with the same folder goes on from there."""
    npm: Path | None = None
    """Folder with the package's `.tgz` file; it is fetched with `npm pack` if missing."""
    out: Path = BASES
    """Where `emoji-128/` and `emoji-128-clip/` are written, and where `unpack` finds them."""
    seed: int = 0
    threads: int = Field(1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are trained. Every draw is made on the CPU in either case; a card's sums
    are rounded in another order, so its weights are its own."""
    workers: int = Field(0, ge=0)
    """Processes that draw rows ahead of the steps; they change the time alone."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device multiplies bf16 itself, else fp32."""
    save_every: float = Field(240, gt=0)
    """Seconds between two saved states. It changes no number: a stage that stopped goes on with
    the last one."""
    sample_every: int = Field(2_000, ge=1)
    """Steps between two sheets of samples."""
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    clip: CLIPSettings = CLIPSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    check: CheckSettings = CheckSettings()

    @property
    def packages(self) -> Path:
        """Return the folder of the npm package."""
        return self.npm or self.work / "npm"
