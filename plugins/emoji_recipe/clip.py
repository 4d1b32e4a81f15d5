"""A small `CLIPModel`: first teacher of the text encoder, and judge of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from dreambooth.files import write_json
from dreambooth.helpers.random import generator
from emoji_recipe import card, loop, optim
from emoji_recipe.ahead import ahead
from emoji_recipe.autoencoder import spans, stacked, to_float
from emoji_recipe.compose import HELD_OUT, Composition, compose, compose_of
from emoji_recipe.drawings import read_drawings
from emoji_recipe.grounds import EDGE
from emoji_recipe.nouns import NOUNS, with_article
from emoji_recipe.words import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings


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


def trimmed(ids: Tensor, pad: int) -> Tensor:
    """Return the ids [B, L] without what is padding for all of them; attention is causal."""
    longest = int((ids != pad).sum(dim=1).max()) + 1
    return ids[:, :longest]


def stack(items: Sequence[Composition]) -> Tensor:
    """Return the pictures as floats [B, 3, 128, 128] in [-1, 1]."""
    return to_float(stacked([item.pixels for item in items]))


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


def noun_targets(items: Sequence[Composition]) -> Tensor:
    """Return each picture's shares of the nouns it shows, [B, nouns]; rows sum to 1."""
    order = {noun: number for number, noun in enumerate(NOUNS)}
    target = np.zeros((len(items), len(NOUNS)), np.float32)
    for row, item in enumerate(items):
        for noun in item.facts.nouns:
            target[row, order[noun]] += 1 / len(item.facts.nouns)
    return torch.from_numpy(target)


def stage(settings: RecipeSettings) -> loop.Stage:
    """Return the stage: compositions are drawn as it goes."""
    options = settings.clip
    tokenizer = open_tokenizer(settings)
    drawings = read_drawings(settings.packages)
    clip = build(settings, tokenizer).to(settings.device)
    pad = tokenizer.pad_token_id
    prompts = trimmed(token_ids(tokenizer, noun_prompts()), pad).to(settings.device)

    def describe(items: Sequence[Composition]) -> dict[str, Tensor]:
        ids = token_ids(tokenizer, [item.caption for item in items])
        pixels = stacked([item.pixels for item in items])
        return {"pixels": pixels, "ids": ids, "target": noun_targets(items)}

    def made(first: int, count: int) -> dict[str, Tensor]:
        return describe([compose(drawings, settings.seed, first + i) for i in range(count)])

    pieces = spans(0, options.pictures, 1_000)
    parts = list(ahead(lambda at: made(*pieces[at]), range(len(pieces)), settings.workers))
    kept = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def rows(step: int, progress: float) -> dict[str, Tensor]:
        if not kept:
            found = made(step * options.batch, options.batch)
        else:
            draw = generator(settings.seed, "clip", step)
            take = torch.randint(options.pictures, (options.batch,), generator=draw)
            found = {name: value[take] for name, value in kept.items()}
        if settings.device == "cpu":  # a captured step has one shape
            found["ids"] = trimmed(found["ids"], pad)
        return found

    def loss(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids, target = rows["ids"], rows["target"]
        with card.autocast(settings):
            images = image_features(clip, to_float(rows["pixels"])).float()
            texts = text_features(clip, ids).float()
            names = text_features(clip, prompts).float()
        scale = clip.logit_scale.exp().clamp(max=100)
        same = (ids[:, None] == ids[None]).all(dim=2)
        pairs = contrastive_loss(scale * images @ texts.T, same)
        # The nouns' own sentences as classes: what the judge is later asked.
        classes = scale * images @ names.T
        named = F.cross_entropy(classes, target)
        right = target.gather(1, classes.argmax(dim=1, keepdim=True)).gt(0).float().mean()
        return {"loss": pairs + named, "pairs": pairs, "nouns": named, "top1": right}

    return loop.Stage(
        name="clip",
        modules={"clip": clip},
        optimizers=optim.build(clip.named_parameters(), options.lr, options.matrix_lr),
        rows=rows,
        loss=loss,
        options=options,
    )


def train(settings: RecipeSettings, minutes: float | None = None) -> bool:
    """Train; at the end save to `work/clip/model` and measure it as a judge."""
    trained = stage(settings)
    if not loop.fit(trained, settings, minutes):
        return False
    clip: Any = trained.modules["clip"].eval().cpu()
    tokenizer = open_tokenizer(settings)
    folder = settings.work / "clip"
    clip.save_pretrained(folder / "model")
    items = held_out_of_each(settings)
    figures = {
        "noun_top1_heldout": round(noun_score(clip, tokenizer, items), 4),
        "pictures": len(items),
        "steps": settings.clip.steps,
    }
    write_json(folder / "figures.json", figures)
    print(f"clip {figures}", flush=True)
    return True


def held_out_of_each(settings: RecipeSettings) -> list[Composition]:
    """Return held-out compositions of one noun, every noun equally often."""
    drawings, nouns = read_drawings(settings.packages), tuple(NOUNS)
    count = settings.check.heldout
    return [
        compose_of(drawings, nouns[i % len(nouns)], settings.seed, HELD_OUT + i)
        for i in range(count)
    ]


@torch.no_grad()
def noun_logits(
    clip: Any, tokenizer: Any, pixels_b3hw: Tensor, nouns: Sequence[str] = tuple(NOUNS)
) -> Tensor:
    """Return the cosine of every picture with every noun's sentence, [B, nouns]."""
    texts = text_features(clip, token_ids(tokenizer, noun_prompts(nouns)))
    return torch.cat([image_features(clip, part) @ texts.T for part in pixels_b3hw.split(64)])


def noun_score(clip: Any, tokenizer: Any, items: Sequence[Composition]) -> float:
    """Return the share of the compositions whose class noun the judge names."""
    named = noun_logits(clip, tokenizer, stack(items)).argmax(dim=1).tolist()
    nouns = tuple(NOUNS)
    return sum(nouns[n] in i.facts.nouns for n, i in zip(named, items, strict=True)) / len(items)


def open_trained(work: Path) -> Any:
    """Return the trained `CLIPModel` of a work folder, frozen."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(work / "clip" / "model").requires_grad_(False).eval()
