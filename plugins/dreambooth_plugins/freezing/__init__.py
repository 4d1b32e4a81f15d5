"""Default freezing policies."""

from __future__ import annotations

from dreambooth import FreezingPolicy, hookimpl
from dreambooth_plugins.freezing.adapter.policy import Adapter
from dreambooth_plugins.freezing.block_preset import BlockPreset
from dreambooth_plugins.freezing.components import Components
from dreambooth_plugins.freezing.components_and_token import ComponentsAndToken
from dreambooth_plugins.freezing.cross_attention import CrossAttention
from dreambooth_plugins.freezing.patterns import Patterns
from dreambooth_plugins.freezing.pivotal import Pivotal
from dreambooth_plugins.freezing.word.token import Token


@hookimpl
def register_freezing_policies() -> list[type[FreezingPolicy]]:
    """Return the policies that come with the trainer."""
    return [
        Adapter,
        BlockPreset,
        Components,
        ComponentsAndToken,
        CrossAttention,
        Patterns,
        Pivotal,
        Token,
    ]
