"""Short trials of equal processor time: which latents, which network, which objective.

    python -m emoji_recipe.trials unet-epsilon-16 --work trials --npm npm --minutes 8

An arm names network, objective and latent channels. It learns plain grounds with one thing from two
learned vectors (noun, colour), without a text encoder, on the latents of the autoencoder in
`WORK/ae<channels>`; its steps follow from the processor time it may use, so that every arm has the
same. It draws 160 prompts, and writes what it drew and how often the ground was right.
`judge` names the things in every arm's pictures with the companion CLIP of `--judge FOLDER`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from dreambooth.files import write_json, write_with
from dreambooth.helpers.random import generator
from emoji_recipe import autoencoder, denoiser, loop, optim
from emoji_recipe.compose import compose
from emoji_recipe.drawings import read_drawings
from emoji_recipe.measures import border_colour, nearest_colour
from emoji_recipe.nouns import COLOURS, NOUNS
from emoji_recipe.objectives import objective, sample
from emoji_recipe.settings import RecipeSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from emoji_recipe.compose import Composition

SHOWN = 160
BATCH = 32
DIT = {"widths": (288,), "layers": 8}


class Words(torch.nn.Module):
    """A learned vector a noun and a colour, and two for neither: [B, 2, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noun = torch.nn.Embedding(len(NOUNS) + 1, width)
        self.colour = torch.nn.Embedding(len(COLOURS) + 1, width)

    def forward(self, noun: Tensor, colour: Tensor) -> Tensor:
        """Return the vectors of the noun and colour numbers [B]."""
        return torch.stack([self.noun(noun), self.colour(colour)], dim=1)


def rows(settings: RecipeSettings, channels: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, noun and colour numbers of plain compositions; encoded once a work folder."""
    path = settings.work / f"rows{channels}.safetensors"
    if not path.is_file():
        drawings, encoder = read_drawings(settings.packages), _encoder(settings, channels)
        nouns, colours = tuple(NOUNS), tuple(COLOURS)
        items: list[Composition] = []
        index = 0
        while len(items) < count:
            item = compose(drawings, settings.seed, index)
            index += 1
            if len(item.facts.nouns) == 1 and item.facts.ground == "solid":
                items.append(item)
        pixels = autoencoder.stacked([item.pixels for item in items])
        with torch.no_grad():
            parts = [
                encoder.encode(autoencoder.to_float(part)).latent_dist.mean.half()
                for part in pixels.split(32)
            ]
        kept = {
            "z": torch.cat(parts),
            "noun": torch.tensor([nouns.index(i.facts.nouns[0]) for i in items]),
            "colour": torch.tensor([colours.index(i.facts.colours[0]) for i in items]),
        }
        write_with(path, lambda file: save_file(kept, file))
    kept = load_file(path)
    return kept["z"].float(), kept["noun"], kept["colour"]


def _encoder(settings: RecipeSettings, channels: int) -> Any:
    return autoencoder.open_trained(settings.work / f"ae{channels}")


def run(arm: str, settings: RecipeSettings, minutes: float) -> None:
    """Train an arm for its processor time, draw, and write `WORK/<arm>`."""
    network_name, aim_name, channels = arm.split("-")
    options = {"network": network_name, "objective": aim_name, "batch": BATCH}
    options |= DIT if network_name == "dit" else {}
    settings = RecipeSettings.model_validate(
        settings.model_dump() | {"denoiser": options, "autoencoder": {"channels": int(channels)}}
    )
    chosen = settings.denoiser
    z_all, nouns, colours = rows(settings, int(channels), 6_000)
    network, words = denoiser.build(settings), Words(settings.clip.width)
    predict = denoiser.predictor(settings, network)
    aim = objective(chosen.objective, chosen.min_snr_gamma)

    def drawn(step: int, progress: float) -> dict[str, Tensor]:
        draw = generator(settings.seed, "trial", step)
        take = torch.randint(len(z_all), (chosen.batch,), generator=draw)
        noise = torch.randn(z_all[take].shape, generator=draw)
        dropped = torch.rand(chosen.batch, generator=draw) < chosen.empty_prompts
        noun = torch.where(dropped, len(NOUNS), nouns[take])
        colour = torch.where(dropped, len(COLOURS), colours[take])
        return {"noun": noun, "colour": colour, **vars(aim.noised(z_all[take], noise, draw))}

    def loss(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = words(rows["noun"], rows["colour"])
        error = (predict(rows["z_t"], rows["t"], states) - rows["target"]).square()
        return {"loss": (rows["weight"] * error.mean(dim=(1, 2, 3))).mean()}

    modules = {"network": network, "words": words}
    trained = loop.Stage(
        name=arm,
        modules=modules,
        optimizers=optim.build(loop.named_parameters(modules), chosen.lr, chosen.matrix_lr),
        rows=drawn,
        loss=loss,
        options=chosen.model_copy(update={"decay_share": 0.5}),
        ema=loop.EMA(modules, 0.998),
    )
    steps = _fit(trained, minutes)
    if trained.ema:
        trained.ema.swap()
    network.eval()
    pictures, asked = _drawn(settings, int(channels), predict, words, aim)
    seen = [nearest_colour(border_colour(picture)) for picture in pictures]
    right = sum(a == colour for a, (_, colour) in zip(seen, asked, strict=True)) / len(asked)
    folder = settings.work / arm
    write_with(folder / "pictures.safetensors", lambda f: save_file({"pictures": pictures}, f))
    write_with(folder / "pictures.png", autoencoder.contact_sheet(pictures, columns=20).save)
    parameters = sum(p.numel() for p in network.parameters())
    figures = {
        "steps": steps,
        "rows": steps * chosen.batch,
        "cpu_minutes": minutes,
        "parameters": parameters,
        "ground_right": round(right, 3),
        "nouns": [noun for noun, _ in asked],
    }
    write_json(folder / "figures.json", figures)
    print(arm, {key: value for key, value in figures.items() if key != "nouns"}, flush=True)


def _fit(trained: loop.Stage, minutes: float) -> int:
    """Train until the processor time is used up; return the steps, fixed from the first ones."""
    begun = time.process_time()
    total = 10**6
    step = 0
    while step < total:
        scalars = loop.train_step(trained, step, total)
        step += 1
        spent = time.process_time() - begun
        if step in {30, 120}:
            total = int(step * minutes * 60 / spent)
        if step % 200 == 0:
            told = f"{trained.name} {step}/{total} {spent / 60:.1f} cpu minutes"
            print(told, f"loss {scalars['loss'].item():.4f}", flush=True)
    return step


@torch.no_grad()
def _drawn(
    settings: RecipeSettings, channels: int, predict: Any, words: Words, aim: Any
) -> tuple[Tensor, list[tuple[str, str]]]:
    """Return the pictures [SHOWN, 3, 128, 128] and the (noun, colour) asked for."""
    names, colours = tuple(NOUNS), tuple(COLOURS)
    asked = [(i % len(names), (i * 5 + i // len(names)) % len(colours)) for i in range(SHOWN)]
    noun, colour = torch.tensor(asked).unbind(dim=1)
    neither = torch.full_like(noun, len(names)), torch.full_like(noun, len(colours))
    shape = (channels, denoiser.SIDE, denoiser.SIDE)
    noise = torch.stack(
        [torch.randn(shape, generator=generator(settings.seed, "shown", i)) for i in range(SHOWN)]
    )
    check = settings.check
    cond, empty = words(noun, colour), words(*neither)
    z = sample(predict, aim.solver(), noise, cond, empty, check.steps, check.guidance)
    decoder = _encoder(settings, channels)
    pictures = torch.cat([decoder.decode(part).sample for part in z.split(16)]).clamp(-1, 1)
    return pictures, [(names[a], colours[b]) for a, b in asked]


def judge(settings: RecipeSettings, arms: list[str], folder: Path) -> None:
    """Print how often the companion CLIP names what was asked for, by arm, and by what margin.

    The margin is the mean cosine of a picture with its noun's sentence over its mean with all
    nouns': short trials differ in it before they differ in hits.
    """
    from transformers import CLIPModel, CLIPTokenizer

    from emoji_recipe.clip import noun_logits

    clip = CLIPModel.from_pretrained(folder / "clip" / "model").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "data" / "tokenizer")
    for arm in arms:
        figures = json.loads((settings.work / arm / "figures.json").read_text())
        pictures = load_file(settings.work / arm / "pictures.safetensors")["pictures"]
        logits = noun_logits(clip, tokenizer, pictures)
        asked = torch.tensor([tuple(NOUNS).index(noun) for noun in figures.pop("nouns")])
        right = (logits.argmax(dim=1) == asked).float().mean().item()
        own = logits.gather(1, asked[:, None])[:, 0]
        margin = (own - logits.mean(dim=1)).mean().item()
        print(
            arm, figures | {"noun_right": round(right, 3), "margin": round(margin, 4)}, flush=True
        )


def main(
    arms: Annotated[list[str], typer.Argument(help="network-objective-channels, one or several.")],
    work: Annotated[Path, typer.Option(help="Folder of the trials.")],
    npm: Annotated[Path | None, typer.Option(help="Folder with the package's .tgz file.")] = None,
    minutes: Annotated[float, typer.Option(help="Processor minutes an arm.")] = 8,
    judged: Annotated[
        Path | None, typer.Option("--judge", help="Judge with this work folder's CLIP instead.")
    ] = None,
) -> None:
    """Run the arms one after the other, or judge them."""
    settings = RecipeSettings(work=work, npm=npm)
    torch.set_num_threads(settings.threads)
    if judged:
        judge(settings, arms, judged)
        return
    for arm in arms:
        run(arm, settings, minutes)


if __name__ == "__main__":
    typer.run(main)
