"""Stage `check`: load the exported folders as anybody would, and measure the figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import RunError
from dreambooth.files import write_json, write_with
from emoji_recipe import autoencoder, clip, export, subjects
from emoji_recipe.compose import HELD_OUT, compose_of
from emoji_recipe.drawings import read_drawings
from emoji_recipe.measures import border_colour, nearest_colour, spread
from emoji_recipe.nouns import COLOURS, NOUNS, with_article

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from emoji_recipe.compose import Composition
    from emoji_recipe.settings import RecipeSettings


def run(settings: RecipeSettings) -> None:
    """Measure everything; write figures and sheets of samples into the base's folder."""
    from transformers import CLIPModel

    folder, judge_folder = settings.out / export.PIPELINE, settings.out / export.JUDGE
    if not (folder / "model_index.json").is_file():
        raise RunError(f"{folder} holds no model", "Run the stages `denoiser` and `export` first.")
    pipe = export.open_pipeline(folder)
    judge = CLIPModel.from_pretrained(judge_folder).eval()
    held = clip.held_out_of_each(settings)

    figures: dict[str, Any] = {
        "size_mb": round(export.size_mb(folder) + export.size_mb(judge_folder), 1)
    }
    figures |= autoencoder.figures(pipe.vae, settings)
    figures |= prompt_figures(pipe, judge, held, settings)
    figures |= pair_figures(pipe, judge, settings)
    figures |= diversity_figures(pipe, judge, settings)
    figures |= speed_figures(pipe, settings)
    for name, value in figures.items():
        print(f"check {name}: {value}", flush=True)
    figures["subjects"] = subjects.run(settings, judge)
    write_json(settings.out / export.PIPELINE / "figures.json", figures)


def prompt_figures(
    pipe: Any, judge: Any, held: Sequence[Composition], settings: RecipeSettings
) -> dict[str, Any]:
    """Sample prompts with a noun and a colour each; count right colours and right nouns.

    The judge chooses among all nouns, for sampled and for real pictures.
    """
    nouns, colours = tuple(NOUNS), tuple(COLOURS)
    count = settings.check.prompts
    asked = [(nouns[i % len(nouns)], colours[(i * 5 + i // len(nouns)) % 12]) for i in range(count)]
    prompts = [
        f"a photo of {with_article(noun)} on {with_article(colour)} background"
        for noun, colour in asked
    ]
    made = export.sample(pipe, prompts, settings, "check")
    shown = min(count, 120)
    sheet = autoencoder.contact_sheet(made[:shown], columns=20)
    write_with(settings.out / export.PIPELINE / "samples.png", sheet.save)
    seen = [nearest_colour(border_colour(picture)) for picture in made]
    right_colour = [a == colour for a, (_, colour) in zip(seen, asked, strict=True)]
    named = [nouns[n] for n in clip.noun_logits(judge, pipe.tokenizer, made).argmax(dim=1)]
    right_noun = [a == noun for a, (noun, _) in zip(named, asked, strict=True)]
    real = clip.noun_score(judge, pipe.tokenizer, held)
    sampled = sum(right_noun) / count
    per_noun = {
        noun: [right_noun[i] for i in range(count) if asked[i][0] == noun] for noun in nouns
    }
    weak = [noun for noun, hits in per_noun.items() if hits and sum(hits) * 2 < len(hits)]
    return {
        "background_right": round(sum(right_colour) / count, 4),
        "noun_top1_sampled": round(sampled, 4),
        "noun_top1_real": round(real, 4),
        "noun_share_of_judge": round(sampled / real, 4) if real else 0.0,
        "weak_nouns": weak,
    }


def pair_figures(pipe: Any, judge: Any, settings: RecipeSettings) -> dict[str, Any]:
    """Sample prompts with two nouns; count pictures in which the judge finds both.

    Found: both are among its three likeliest nouns for the whole, or each is its first for a half.
    """
    nouns, colours, count = tuple(NOUNS), tuple(COLOURS), settings.check.pairs
    asked = [(i * 7 % len(nouns), (i * 11 + 3) % len(nouns)) for i in range(count)]
    asked = [(a, b if b != a else (b + 1) % len(nouns)) for a, b in asked]
    prompts = [
        f"a photo of {with_article(nouns[a])} and {with_article(nouns[b])} "
        f"on {with_article(colours[i % 12])} background"
        for i, (a, b) in enumerate(asked)
    ]
    made = export.sample(pipe, prompts, settings, "pairs")
    sheet = autoencoder.contact_sheet(made[:60], columns=12)
    write_with(settings.out / export.PIPELINE / "pairs.png", sheet.save)
    whole = clip.noun_logits(judge, pipe.tokenizer, made).topk(3, dim=1).indices.tolist()
    halves = [square(half) for half in made.chunk(2, dim=3)]
    left, right = (clip.noun_logits(judge, pipe.tokenizer, half).argmax(dim=1) for half in halves)
    found = [
        {a, b} <= set(three) or {a, b} == {int(one), int(other)}
        for (a, b), three, one, other in zip(asked, whole, left, right, strict=True)
    ]
    return {"pairs_found": round(sum(found) / count, 4)}


def square(half_b3hw: Tensor) -> Tensor:
    """Return half pictures [B, 3, H, H / 2] as squares, the ground continued above and below."""
    edge = half_b3hw.shape[2]
    room = edge - half_b3hw.shape[3]
    sides = (room // 2, room - room // 2)
    padded: Tensor = torch.nn.functional.pad(half_b3hw, (*sides, 0, 0), mode="replicate")
    return padded


def diversity_figures(pipe: Any, judge: Any, settings: RecipeSettings) -> dict[str, float]:
    """Compare the spread of sampled dogs with that of composed dogs nobody trained on."""
    count, drawings = settings.check.diversity, read_drawings(settings.packages)
    real = [compose_of(drawings, "dog", settings.seed, HELD_OUT + i) for i in range(count)]
    made = export.sample(pipe, ["a photo of a dog"] * count, settings, "diversity")
    of_real, of_made = spread(judge, clip.stack(real)), spread(judge, made)
    return {
        "diversity_real": round(of_real, 4),
        "diversity_sampled": round(of_made, 4),
        "diversity_share": round(of_made / of_real, 4),
    }


def speed_figures(pipe: Any, settings: RecipeSettings) -> dict[str, float]:
    """Time 64 pictures with guidance."""
    export.sample(pipe, ["a photo of a dog"] * 2, settings, "speed")
    begun = time.monotonic()
    export.sample(pipe, ["a photo of a dog"] * 64, settings, "speed")
    return {"seconds_64_pictures": round(time.monotonic() - begun, 1)}
