"""Stage `check`: load the exported folders as anybody would, and measure the figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.errors import RunError
from dreambooth.files import write_json, write_with
from dreambooth_plugins.base_emoji import clip, export, subjects, vae
from dreambooth_plugins.base_emoji.compose import HELD_OUT, compose
from dreambooth_plugins.base_emoji.measures import border_colour, nearest_colour, spread
from dreambooth_plugins.base_emoji.nouns import COLOURS, with_article
from dreambooth_plugins.base_emoji.sprites import read_sprites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth_plugins.base_emoji.compose import Composition
    from dreambooth_plugins.base_emoji.settings import RecipeSettings


def run(settings: RecipeSettings) -> None:
    """Measure everything, print it, and write `out/figures.json` and a sheet of samples."""
    from transformers import CLIPModel

    folder, judge_folder = settings.out / export.PIPELINE, settings.out / export.JUDGE
    if not (folder / "model_index.json").is_file():
        raise RunError(f"{folder} holds no model", "Run the stage `unet` first.")
    pipe = export.open_pipeline(folder)
    judge = CLIPModel.from_pretrained(judge_folder).eval()
    sprites = read_sprites(settings.packages)
    count = settings.check.heldout
    held = [compose(sprites, settings.seed, HELD_OUT + i) for i in range(count)]

    figures: dict[str, Any] = {
        "size_mb": round(export.size_mb(folder) + export.size_mb(judge_folder), 1)
    }
    figures |= vae_figures(pipe.vae, held)
    figures |= prompt_figures(pipe, judge, held, settings)
    figures |= diversity_figures(pipe, judge, sprites, settings)
    figures |= speed_figures(pipe, settings)
    for name, value in figures.items():
        print(f"check {name}: {value}", flush=True)
    figures["subjects"] = subjects.run(settings, judge)
    write_json(settings.out / "figures.json", figures)


@torch.no_grad()
def vae_figures(autoencoder: Any, held: Sequence[Composition]) -> dict[str, float]:
    """Return the PSNR of held-out reconstructions: mean over pictures, and of the mean error."""
    real = clip.stack(held)
    values = vae.psnr(vae.reconstruct(autoencoder, real), real)
    of_mean = -10 * (10 ** (-values / 10)).mean().log10()
    return {
        "vae_psnr_db": round(values.mean().item(), 2),
        "vae_psnr_of_mean_error_db": round(of_mean.item(), 2),
    }


def prompt_figures(
    pipe: Any, judge: Any, held: Sequence[Composition], settings: RecipeSettings
) -> dict[str, Any]:
    """Sample prompts with a noun and a colour each; count right colours and right nouns.

    The judge chooses among the nouns the UNet was trained on, for sampled and for real pictures.
    """
    nouns, colours = settings.unet.nouns, tuple(COLOURS)
    count = settings.check.prompts
    asked = [(nouns[i % len(nouns)], colours[(i * 5 + i // len(nouns)) % 12]) for i in range(count)]
    prompts = [
        f"a photo of {with_article(noun)} on {with_article(colour)} background"
        for noun, colour in asked
    ]
    made = export.sample(pipe, prompts, settings, "check")
    shown = min(count, 120)
    sheet = vae.contact_sheet(made[:shown], columns=20)
    write_with(settings.out / "samples.png", sheet.save)
    seen = [nearest_colour(border_colour(picture)) for picture in made]
    right_colour = [a == colour for a, (_, colour) in zip(seen, asked, strict=True)]
    named = clip.classify(judge, pipe.tokenizer, made, nouns)
    right_noun = [a == noun for a, (noun, _) in zip(named, asked, strict=True)]
    real = clip.noun_score(judge, pipe.tokenizer, held, nouns)
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


def diversity_figures(
    pipe: Any, judge: Any, sprites: Sequence[Any], settings: RecipeSettings
) -> dict[str, float]:
    """Compare the spread of sampled dogs with that of composed dogs nobody trained on."""
    count = settings.check.diversity
    dogs = [sprite for sprite in sprites if sprite.noun == "dog"]
    real: list[Composition] = []
    index = HELD_OUT
    while len(real) < count:
        item = compose(sprites, settings.seed, index)
        index += 1
        if item.facts.noun == "dog":
            real.append(item)
    made = export.sample(pipe, ["a photo of a dog"] * count, settings, "diversity")
    of_real, of_made = spread(judge, clip.stack(real)), spread(judge, made)
    return {
        "diversity_real": round(of_real, 4),
        "diversity_sampled": round(of_made, 4),
        "diversity_share": round(of_made / of_real, 4),
        "dog_drawings": len(dogs),
    }


def speed_figures(pipe: Any, settings: RecipeSettings) -> dict[str, float]:
    """Time 64 pictures with guidance."""
    export.sample(pipe, ["a photo of a dog"] * 2, settings, "speed")
    begun = time.monotonic()
    export.sample(pipe, ["a photo of a dog"] * 64, settings, "speed")
    return {"seconds_64_pictures": round(time.monotonic() - begun, 1)}
