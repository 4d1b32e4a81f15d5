"""A small `CLIPModel`: first teacher of the text encoder, and judge of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from dreambooth.engine.random import generator
from dreambooth.files import write_json
from dreambooth_plugins.base_emoji import loop, optim
from dreambooth_plugins.base_emoji.compose import EDGE, HELD_OUT, Composition, compose
from dreambooth_plugins.base_emoji.data import open_tokenizer
from dreambooth_plugins.base_emoji.nouns import NOUNS, with_article
from dreambooth_plugins.base_emoji.sprites import read_sprites
from dreambooth_plugins.base_emoji.vae import to_float

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from dreambooth_plugins.base_emoji.settings import RecipeSettings


def build(settings: RecipeSettings, tokenizer: Any) -> Any:
    """Return an untrained `CLIPModel`; its weights are a function of the seed."""
    from transformers import CLIPConfig, CLIPModel

    options = settings.clip
    shared = {
        "hidden_size": options.width,
        "intermediate_size": 3 * options.width,
        "num_attention_heads": options.width // 32,
        "projection_dim": 128,
    }
    text = shared | {
        "num_hidden_layers": options.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": options.max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {
        "num_hidden_layers": options.vision_layers,
        "image_size": EDGE,
        "patch_size": options.patch,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(settings.seed, "clip-weights").get_state())
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return the prompts' token ids, padded to the full length: int64 [B, L]."""
    made = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = made.input_ids
    return ids


def stack(items: Sequence[Composition]) -> Tensor:
    """Return the pictures as floats [B, 3, 64, 64] in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack([i.pixels for i in items])).permute(0, 3, 1, 2))


def noun_prompts(nouns: Sequence[str] = tuple(NOUNS)) -> list[str]:
    """Return the sentences that stand for the class nouns, in their order."""
    return [f"a photo of {with_article(noun)}" for noun in nouns]


def image_features(clip: Any, pixels_b3hw: Tensor) -> Tensor:
    """Return unit image embeddings [B, D] of pictures in [-1, 1]."""
    pooled = clip.vision_model(pixel_values=pixels_b3hw).pooler_output
    return F.normalize(clip.visual_projection(pooled), dim=-1)


def text_features(clip: Any, ids: Tensor) -> Tensor:
    """Return unit text embeddings [B, D]."""
    pooled = clip.text_model(input_ids=ids).pooler_output
    return F.normalize(clip.text_projection(pooled), dim=-1)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of logits [B, B]; `same` marks equal captions.

    Rows with equal captions share the target evenly (Radford et al. 2021, with several positives).
    """
    target = same.float() / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(settings: RecipeSettings, replan: bool = False) -> None:
    """Train on compositions drawn as it goes; save to `work/clip/model`."""
    options = settings.clip
    tokenizer = open_tokenizer(settings)
    sprites = read_sprites(settings.packages)
    clip = build(settings, tokenizer)
    nouns = tuple(NOUNS)
    prompts = token_ids(tokenizer, noun_prompts())

    def loss(step: int, progress: float) -> dict[str, Tensor]:
        first = step * options.batch
        items = [compose(sprites, settings.seed, first + i) for i in range(options.batch)]
        captions = [item.caption for item in items]
        images = image_features(clip, stack(items))
        # Attention is causal: what is padding for all of them changes nothing.
        ids = torch.cat([token_ids(tokenizer, captions), prompts])
        longest = int((ids != tokenizer.pad_token_id).sum(dim=1).max()) + 1
        texts = text_features(clip, ids[:, :longest])
        scale = clip.logit_scale.exp().clamp(max=100)
        same = torch.tensor([[a == b for b in captions] for a in captions])
        pairs = contrastive_loss(scale * images @ texts[: len(items)].T, same)
        # The nouns' own sentences as classes: what the judge is later asked.
        classes = scale * images @ texts[len(items) :].T
        label = torch.tensor([nouns.index(item.facts.noun) for item in items])
        named = F.cross_entropy(classes, label)
        right = (classes.argmax(dim=1) == label).float().mean()
        return {"loss": pairs + named, "pairs": pairs, "nouns": named, "top1": right}

    stage = loop.Stage(
        name="clip",
        modules={"clip": clip},
        optimizers=optim.build(clip.named_parameters(), options.lr, options.matrix_lr),
        loss=loss,
        minutes=options.minutes,
        decay_share=0.7,
    )
    loop.fit(stage, settings, replan)
    folder = settings.work / "clip"
    clip.save_pretrained(folder / "model")
    items = [compose(sprites, settings.seed, HELD_OUT + i) for i in range(settings.check.heldout)]
    figures = {
        "noun_top1_heldout": round(noun_score(clip.eval(), tokenizer, items), 4),
        "pictures": len(items),
    }
    write_json(folder / "figures.json", figures)
    print(f"clip {figures}", flush=True)


@torch.no_grad()
def classify(
    clip: Any, tokenizer: Any, pixels_b3hw: Tensor, nouns: Sequence[str] = tuple(NOUNS)
) -> list[str]:
    """Return each picture's most likely class noun among `nouns`."""
    texts = text_features(clip, token_ids(tokenizer, noun_prompts(nouns)))
    parts = [image_features(clip, part) @ texts.T for part in pixels_b3hw.split(64)]
    return [nouns[number] for number in torch.cat(parts).argmax(dim=1).tolist()]


def noun_score(
    clip: Any,
    tokenizer: Any,
    items: Sequence[Composition],
    nouns: Sequence[str] = tuple(NOUNS),
) -> float:
    """Return the share of the compositions whose class noun the judge names among `nouns`."""
    shown = [item for item in items if item.facts.noun in nouns]
    named = classify(clip, tokenizer, stack(shown), nouns)
    return sum(a == i.facts.noun for a, i in zip(named, shown, strict=True)) / len(shown)


def open_trained(work: Path) -> Any:
    """Return the trained `CLIPModel` of a work folder, frozen."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(work / "clip" / "model").requires_grad_(False).eval()
