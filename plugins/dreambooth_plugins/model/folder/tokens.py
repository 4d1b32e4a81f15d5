"""New tokens of a CLIP text encoder: rows after the table's last, and prompts that mean them."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Embedding, Parameter
from torch.nn import functional as F
from transformers import AddedToken

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces.model import NEW_ROWS
from dreambooth_plugins.formats.embedding import token_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import CLIPTokenizer


class ExtendedEmbedding(Embedding):
    """An embedding table with new rows of their own: token ids from `len(weight)` on.

    The table stays one frozen parameter and the new rows are another, float32: what optimizer,
    average, clipping and checkpoints hold is these rows alone, and no row of the table can move.
    """

    def __init__(self, table: Embedding, rows: Tensor) -> None:
        """Take over the table's own parameter; `rows` is [n, dim]."""
        count, dim = table.weight.shape
        super().__init__(count, dim, _weight=table.weight)
        self.weight = table.weight
        self.new_rows = Parameter(rows.float())
        assert NEW_ROWS in dict(self.named_parameters())

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., dim] in the table's dtype for token ids [...]."""
        count = len(self.weight)
        known = F.embedding(input.clamp(max=count - 1), self.weight)
        new = F.embedding((input - count).clamp(min=0), self.new_rows).to(known.dtype)
        return torch.where((input >= count).unsqueeze(-1), new, known)


def extended_tokenizer(tokenizer: CLIPTokenizer, name: str, count: int) -> CLIPTokenizer:
    """Return a copy of the tokenizer that reads `name` as a token of its own.

    `JobError` where that is not possible: the model has the token, or would not find it again.
    """
    names, known = token_names(name, count), tokenizer.get_vocab()
    if taken := [n for n in names if n in known or f"{n}</w>" in known]:
        raise JobError(
            f'"{taken[0]}" is a token of this model already: it cannot get a row of its own',
            f"take a name that means nothing yet, such as <{name.strip('<>')}>",
        )
    extended: CLIPTokenizer = copy.deepcopy(tokenizer)
    # Whole words alone: `zwxy` is no `zwx` with a letter behind it.
    extended.add_tokens([AddedToken(n, single_word=True, normalized=True) for n in names])
    if name.split() != [name] or extended.tokenize(" ".join(names)) != names:
        plain = "-".join(name.strip("<>").lower().split())
        raise JobError(
            f'the tokenizer does not find "{name}" again in a prompt',
            f"write it in lower case, without spaces: <{plain}>",
        )
    return extended


def first_rows(table: Tensor, tokenizer: CLIPTokenizer, words: str, count: int) -> Tensor:
    """Return the [count, dim] rows new tokens begin with: those of the words' own tokens in turn.

    Where the words are more tokens than there are rows, the last row is the mean of what is left.
    """
    ids = tokenizer(words, add_special_tokens=False).input_ids
    if not ids:
        raise JobError("freezing.words: there is no word to begin with", "name one, such as dog")
    rows = [table[ids[i % len(ids)]] for i in range(count)]
    if len(ids) > count:
        rows[-1] = table[ids[count - 1 :]].float().mean(0)
    return torch.stack([row.float() for row in rows])


def extend_table(encoder: Any, tokenizer: CLIPTokenizer, rows: Tensor) -> None:
    """Put new rows behind an encoder's table; `tokenizer` has their tokens already."""
    table = encoder.get_input_embeddings()
    if len(tokenizer) != len(table.weight) + len(rows):
        raise RunError(
            f"the tokenizer has {len(tokenizer) - len(rows)} tokens and the text encoder "
            f"{len(table.weight)} rows: a new token would have no row of its own",
            "take tokenizer and text encoder from the same model",
        )
    encoder.set_input_embeddings(ExtendedEmbedding(table, rows.to(table.weight.device)))


def with_all_tokens(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """Write out the further tokens of a word that has several, as diffusers' pipelines do.

    Whole words alone, in any case: the tokenizer reads `ZWX` as `zwx`, and `zwxy` as another word.
    """
    added = tokenizer.added_tokens_encoder
    for token in added:
        names, i = [token], 1
        while (further := f"{token}_{i}") in added:
            names.append(further)
            i += 1
        if len(names) > 1:
            # Names are texts, not templates: a backslash in one means itself.
            prompt = _whole_word(token).sub(" ".join(names).replace("\\", r"\\"), prompt)
    return prompt


def _whole_word(token: str) -> re.Pattern[str]:
    left, right = (r"(?<!\w)" * (token[0].isalnum()), r"(?!\w)" * (token[-1].isalnum()))
    return re.compile(left + re.escape(token) + right, re.IGNORECASE)


def new_rows(module: Module) -> dict[str, Tensor]:
    """Return an encoder's new rows by parameter name; empty where it has none."""
    return {n: p.detach() for n, p in module.named_parameters() if n.endswith(f".{NEW_ROWS}")}
