from typing import Literal

from dreambooth import FreezingPolicy, hookimpl


class CrossAttentionOnly(FreezingPolicy):
    """Train only the cross-attention of the UNet."""

    kind: Literal["cross_attention_only"] = "cross_attention_only"
    contains: str = ".attn2."
    """Part of the name of a parameter that trains."""

    def trainable(self, model):
        return {n: p for n, p in model.named_parameters("unet") if self.contains in n}


@hookimpl
def register_freezing_policies():
    return [CrossAttentionOnly]
