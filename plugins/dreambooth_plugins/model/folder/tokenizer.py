"""A model folder's tokenizer: read, made from a vocabulary, and written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import transformers
from transformers import CLIPTokenizer

from dreambooth.errors import RunError
from dreambooth.files import write_json
from dreambooth_plugins.common.quiet import quiet
from dreambooth_plugins.model.folder.clip_vocabulary import clip_vocabulary
from dreambooth_plugins.model.folder.loading import told
from dreambooth_plugins.model.folder.source import read_json
from dreambooth_plugins.model.folder.vocabulary import has_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth_plugins.model.folder.source import Source


def make_tokenizer(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> CLIPTokenizer:
    """Build a CLIP tokenizer from a vocabulary and the tokenizer_config.json of its folder."""
    options = read_json(folder / "tokenizer_config.json")
    kept = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, **{k: options[k] for k in kept if k in options}
    )


def load_tokenizer(source: Source, part: str) -> Any:
    """Read a text encoder's tokenizer; a shipped configuration takes CLIP's vocabulary."""
    known = source.part(part)
    folder = source.config / str(known.tokenizer)
    if source.file is not None and not has_vocabulary(folder):
        return make_tokenizer(folder, *clip_vocabulary())
    if not has_vocabulary(folder):
        raise RunError(
            f"{folder} holds no vocabulary (tokenizer.json, or vocab.json and merges.txt)",
            "the model folder is incomplete: copy or download it again",
        )
    with quiet(), told(f"{folder} holds no tokenizer that can be read"):
        cls: Any = getattr(transformers, known.tokenizer_cls)
        return cls.from_pretrained(str(folder), local_files_only=True)


def save_tokenizer(tokenizer: CLIPTokenizer, dest: Path) -> None:
    """Write tokenizer.json and, for older loaders, vocab.json, merges.txt, special and added
    tokens."""
    dest.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(dest))
    tokenizer.backend_tokenizer.model.save(str(dest))
    # Truncation and padding of the last call are state, not part of the tokenizer.
    whole = json.loads((dest / "tokenizer.json").read_text(encoding="utf-8"))
    write_json(dest / "tokenizer.json", {**whole, "truncation": None, "padding": None})
    file = dest / "tokenizer_config.json"
    options = json.loads(file.read_text(encoding="utf-8"))
    kept = ("bos_token", "eos_token", "unk_token", "pad_token", "added_tokens_decoder")
    special = {name: options[name] for name in kept[:4] if name in options}
    write_json(
        file,
        {
            **{name: options[name] for name in kept if name in options},
            "do_lower_case": True,
            "model_max_length": options["model_max_length"],
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    write_json(dest / "special_tokens_map.json", special)
    added = {t: i for t, i in tokenizer.added_tokens_encoder.items() if t not in special.values()}
    if added:
        write_json(dest / "added_tokens.json", added)
