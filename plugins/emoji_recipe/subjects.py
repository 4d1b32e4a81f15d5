"""DreamBooth on subjects the base has never seen, with and without prior preservation."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dreambooth.files import write_text, write_with
from dreambooth.helpers.pictures import to_images
from dreambooth.helpers.random import numpy_generator
from emoji_recipe import autoencoder, export, grounds
from emoji_recipe.compose import paste
from emoji_recipe.drawings import subject
from emoji_recipe.grounds import EDGE
from emoji_recipe.measures import (
    border_colour,
    likeness,
    nearest_colour,
    spread,
)
from emoji_recipe.nouns import COLOURS, with_article

if TYPE_CHECKING:
    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings

    Drawn = dict[str, Tensor]

PICTURES = 5
SAMPLES = 16
COLUMNS, LABEL, SHOWN = 10, 270, 88
"""Pictures a row of the sheet, and the pixels of its labels and pictures."""
IDENTIFIER = "ohwx"


def instance_pictures(settings: RecipeSettings, noun: str) -> tuple[list[Image.Image], list[str]]:
    """Return a subject's five pictures, RGB 128 x 128, and the colours of their grounds."""
    drawing = subject(settings.packages, noun)
    rng = numpy_generator(settings.seed, "subject", *noun.encode())
    colours = [tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:PICTURES]]
    pictures = []
    for colour in colours:
        canvas = grounds.draw("solid", (colour,), rng)
        edge = round(EDGE * rng.uniform(0.6, 0.9))
        left, top = (int(x) for x in rng.integers(0, EDGE - edge + 1, 2))
        layer = drawing.resize((edge, edge), Image.Resampling.LANCZOS)
        paste(canvas, np.asarray(layer, dtype=np.float32), (left, top, edge))
        pictures.append(Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8)))
    return pictures, colours


def train(settings: RecipeSettings, noun: str, folder: Path, *, prior: bool) -> Path:
    """Run the example's job on a subject and return the exported pipeline.

    The class images of both runs, and of later ones with the same base, are shared by the store.
    """
    from dreambooth import run
    from dreambooth.cli.starter import Starter, job_text
    from dreambooth.jobs.loading import load_job

    pictures, colours = instance_pictures(settings, noun)
    for number, (picture, colour) in enumerate(zip(pictures, colours, strict=True), start=1):
        write_with(folder / f"pictures/{number:02d}.png", picture.save)
        caption = f"a photo of a {{identifier}} {{class_noun}} on {with_article(colour)} background"
        write_text(folder / f"pictures/{number:02d}.txt", caption + "\n")
    starter = Starter(noun, IDENTIFIER, noun, "pictures", PICTURES, EDGE)
    write_text(folder / "job.yaml", job_text(starter))
    changed = [
        f"model.source={settings.out / export.PIPELINE}",
        f"name={noun}-{'prior' if prior else 'none'}",
        f"train.steps={settings.check.train_steps}",
        "samples.every=0",
        *([] if prior else ["prior=none"]),
    ]
    return run(load_job(folder / "job.yaml", changed)).final


@torch.no_grad()
def subject_figures(judge: Any, drawn: Drawn, asked: list[str]) -> dict[str, float]:
    """Return a subject's figures; `asked` are the colours of the `placed` pictures."""
    real = drawn["instances"]
    low, high = likeness(judge, drawn["base"], real), 1 - spread(judge, real)
    got = likeness(judge, drawn["itself"], real)
    seen = [nearest_colour(border_colour(picture)) for picture in drawn["placed"]]
    return {
        "similarity_base": round(low, 3),
        "similarity_tuned": round(got, 3),
        "similarity_real": round(high, 3),
        "similarity_share": round((got - low) / (high - low), 2),
        "background_right": round(sum(map(str.__eq__, seen, asked)) / len(asked), 2),
        "pres_prior": round(likeness(judge, drawn["kept"], real), 3),
        "pres_none": round(likeness(judge, drawn["lost"], real), 3),
        "diversity_prior": round(spread(judge, drawn["kept"]), 3),
        "diversity_none": round(spread(judge, drawn["lost"]), 3),
    }


def labelled_sheet(drawn: Drawn, noun: str) -> Image.Image:
    """Return the subject's pictures as one sheet, a row each, with what it shows on the left."""
    named, plain = f'"a {IDENTIFIER} {noun} on a ..."', f'"a photo of {with_article(noun)}"'
    rows = {
        "the pictures": drawn["instances"],
        f"before: {named}": drawn["before"],
        f"after: {named}": drawn["placed"],
        f"before: {plain}": drawn["base"],
        f"after: {plain}": drawn["kept"],
        f"without prior: {plain}": drawn["lost"],
    }
    sheet = Image.new("RGB", (LABEL + COLUMNS * SHOWN, len(rows) * SHOWN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows.items()):
        pen.text((8, number * SHOWN + SHOWN // 2 - 8), label, "black", ImageFont.load_default(14))
        for column, picture in enumerate(to_images(pictures[:COLUMNS])):
            shown = picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            sheet.paste(shown, (LABEL + column * SHOWN, number * SHOWN))
    return sheet


def measure(settings: RecipeSettings, judge: Any, noun: str) -> tuple[dict[str, Any], Image.Image]:
    """Train one subject with and without prior preservation; return its figures and a sheet."""
    named = f"a photo of {with_article(f'{IDENTIFIER} {noun}')}"
    plain = [f"a photo of {with_article(noun)}"] * SAMPLES
    pictures, colours = instance_pictures(settings, noun)
    others = [colour for colour in COLOURS if colour not in colours] * 2
    asked = [f"{named} on {with_article(colour)} background" for colour in others]

    def draw(folder: Path, prompts: list[str], stream: str) -> Tensor:
        return export.sample(export.open_pipeline(folder), prompts, settings, stream)

    real = autoencoder.to_float(autoencoder.stacked([np.asarray(p) for p in pictures]))
    with TemporaryDirectory() as name:
        began = time.monotonic()
        tuned = train(settings, noun, Path(name), prior=True)
        seconds = time.monotonic() - began
        bare = train(settings, noun, Path(name), prior=False)
        drawn = {
            "instances": real,
            "base": draw(settings.out / export.PIPELINE, plain, "class"),
            "itself": draw(tuned, [named] * SAMPLES, "itself"),
            "before": draw(settings.out / export.PIPELINE, asked, "placed"),
            "placed": draw(tuned, asked, "placed"),
            "kept": draw(tuned, plain, "class"),
            "lost": draw(bare, plain, "class"),
        }
    figures = {"seconds": round(seconds, 1)} | subject_figures(judge, drawn, others)
    return figures, labelled_sheet(drawn, noun)


def run(settings: RecipeSettings, judge: Any) -> dict[str, Any]:
    """Measure every subject and return the figures; sheets go into the base's folder."""
    table: dict[str, Any] = {}
    for noun in settings.check.subjects:
        table[noun], sheet = measure(settings, judge, noun)
        write_with(settings.out / export.PIPELINE / "subjects" / f"{noun}.png", sheet.save)
        print(f"check {noun}: {table[noun]}", flush=True)
    return table
