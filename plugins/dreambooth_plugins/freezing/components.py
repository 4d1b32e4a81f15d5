"""Train whole parts of the model, the way the DreamBooth paper does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dreambooth_plugins.freezing.per_part import Name, NamedParts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Parameter

    from dreambooth.interfaces import LoadedModel


class Components(NamedParts):
    """Train every parameter of the named parts and freeze the others (arXiv:2208.12242).

    Training the text encoder along with the denoiser helps likeness most, faces above all.
    """

    kind: Literal["components"] = "components"
    train: list[Name] = Field(default=["unet", "text_encoder"], min_length=1)
    """Parts that train, by their diffusers folder name (`unet`, `text_encoder`, `transformer`) or
    by role (`denoiser`, `text_encoders`)."""

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return every parameter of the named parts."""
        return dict(model.named_parameters(*self.trained_parts(model.info)))
