"""What a part of a diffusers folder is: who loads it, what role it plays, what files call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth.interfaces import Role


@dataclass(frozen=True)
class Part:
    """One folder of a diffusers folder that holds a network."""

    name: str
    """Its folder."""
    role: Role | None
    """What it does in training; None for a part that takes no part in it."""
    library: Literal["diffusers", "transformers"]
    """Which library has its class."""
    cls: str
    """Its class, as model_index.json names it."""
    tokenizer: str | None = None
    """The folder of its tokenizer, where it reads text."""
    file_prefix: str = ""
    """What files put before the names that its parameters have in memory (`text_model.`)."""
    original: str = ""
    """What its tensors' names begin with in a single file in the original layout."""
    tokenizer_cls: str = "CLIPTokenizer"
    """transformers' class of its tokenizer."""
    frozen: str = ""
    """What it is, where it never trains (`a T5 encoder`): such a part is copied when the model is
    written."""
    renamed: bool = False
    """Whether its library reads files whose names are others than those in memory."""
    optional: bool = False
    """Whether a model may come without it."""

    @property
    def stem(self) -> str:
        """The name of its weight file, as its library writes it."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"

    @property
    def pickle_stem(self) -> str:
        """The name of its weight file as a pickle."""
        return "pytorch_model" if self.library == "transformers" else self.stem

    @property
    def entry(self) -> list[str]:
        """What model_index.json says of it."""
        return [self.library, self.cls]

    def file_name(self, name: str) -> str:
        """Return what files call a module or parameter that is called `name` in memory.

        Their names carry the prefix, whatever the library calls them in memory: other tools know
        no other name.
        """
        return name if name.startswith(self.file_prefix) else f"{self.file_prefix}{name}"

    def file_key(self, name: str) -> str:
        """Return the portable name of a parameter: injected adapters rename base weights."""
        return self.file_name(name.replace(".base_layer.", "."))


def names(parts: Iterable[Part], role: Role | None = None) -> tuple[str, ...]:
    """Return the names of parts, or of those in a role."""
    return tuple(part.name for part in parts if role is None or part.role == role)


def roles(parts: Iterable[Part]) -> dict[Role, tuple[str, ...]]:
    """Return role -> names of the parts in it: `ModelInfo.roles`."""
    known = tuple(parts)
    return {role: names(known, role) for role in ("denoiser", "text_encoders", "vae")}
