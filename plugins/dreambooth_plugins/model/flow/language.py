"""What families share that read texts with a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dreambooth_plugins.model.flow.loaded import FlowFolder

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "text_encoder"


class LanguageModel(FlowFolder):
    """A frozen language model whose hidden states are the texts."""

    def read_chat(self, prompt: str, length: int, *, thinking: bool) -> tuple[Tensor, Tensor]:
        """Return token ids and mask of a prompt as the user's turn of a chat, int64 [length].

        Padded to `length`, on the CPU; a prompt that is cut short is warned about.
        """
        text = self.tokenizer_of(TEXT).apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        return self.read_prompt(TEXT, text, length)

    def states(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the hidden states [B, length, dim] of all layers, the embeddings first.

        On `meta` the mask is one of all pairs: a mask of tokens would be looked at.
        """
        given = mask
        if ids.is_meta:
            count, length = ids.shape
            given = torch.ones(count, 1, length, length, dtype=torch.bool, device="meta")
        found: Any = self._through(
            TEXT,
            lambda text: text(
                input_ids=ids, attention_mask=given, output_hidden_states=True, use_cache=False
            ),
        )
        states: tuple[Tensor, ...] = found.hidden_states
        return states
