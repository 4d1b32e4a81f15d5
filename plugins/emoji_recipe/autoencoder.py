"""The autoencoder: `AutoencoderKL`, 128 x 128 pixels to 16 x 16 latents of 16 channels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from dreambooth.files import write_json
from dreambooth.helpers.pictures import grid, to_images
from dreambooth.helpers.random import generator
from emoji_recipe import card, loop, optim, textures
from emoji_recipe.ahead import ahead
from emoji_recipe.compose import HELD_OUT, compose
from emoji_recipe.drawings import read_drawings
from emoji_recipe.grounds import EDGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings

LOG_VARIANCE = -6.0
"""Where the latents' log-variance begins: noise of 0.05, or the first steps are lost."""
FACTOR = 8
"""Pixels a latent is wide."""


def stacked(arrays: Sequence[Any]) -> Tensor:
    """Return uint8 pictures [H, W, 3] as one tensor [N, 3, H, W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def compositions(settings: RecipeSettings, first: int, count: int) -> tuple[Tensor, list[str]]:
    """Return compositions as uint8 [N, 3, 128, 128] and their captions."""
    drawings = read_drawings(settings.packages)
    items = [compose(drawings, settings.seed, first + i) for i in range(count)]
    return stacked([item.pixels for item in items]), [item.caption for item in items]


def spans(first: int, count: int, size: int = 250) -> list[tuple[int, int]]:
    """Return (first, count) of pieces of at most `size`."""
    return [(first + at, min(size, count - at)) for at in range(0, count, size)]


def drawn(
    settings: RecipeSettings, pieces: Sequence[tuple[int, int]]
) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield the compositions (first, count) of each piece, by the recipe's workers."""
    read_drawings(settings.packages)  # once, before workers are forked
    make = partial(compositions, settings)
    return ahead(lambda at: make(*pieces[at]), range(len(pieces)), settings.workers)


def training_pictures(settings: RecipeSettings) -> Tensor:
    """Return what the autoencoder learns from: compositions, dead leaves, photographs."""
    options, seed = settings.autoencoder, settings.seed
    parts = [pixels for pixels, _ in drawn(settings, spans(0, options.compositions))]
    kinds = ((textures.dead_leaves, options.leaves), (textures.photograph, options.photographs))
    for make, count in kinds:
        pieces = spans(0, count)
        made = partial(_several, make, seed, pieces)
        parts += ahead(made, range(len(pieces)), settings.workers)
    return torch.cat(parts)


def _several(
    make: Callable[[int, int], Any], seed: int, pieces: Sequence[tuple[int, int]], at: int
) -> Tensor:
    first, count = pieces[at]
    return stacked([make(seed, first + i) for i in range(count)])


def held_out_photographs(folder: Path) -> Tensor:
    """Return a folder's photographs (`*/*.jpg`), middle squares at 128 px: uint8 [N, 3, H, W]."""
    from PIL import Image, ImageOps

    files = sorted(folder.glob("*/*.jpg"))
    pictures = [ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in files]
    fitted = [ImageOps.fit(p, (EDGE, EDGE), Image.Resampling.LANCZOS) for p in pictures]
    return stacked([np.asarray(picture) for picture in fitted])


def build(settings: RecipeSettings) -> Any:
    """Return an untrained autoencoder; its weights are a function of the seed."""
    from diffusers import AutoencoderKL

    options = settings.autoencoder
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(settings.seed, "vae-weights").get_state())
        vae = AutoencoderKL(
            block_out_channels=options.widths,
            down_block_types=("DownEncoderBlock2D",) * len(options.widths),
            up_block_types=("UpDecoderBlock2D",) * len(options.widths),
            layers_per_block=1,
            latent_channels=options.channels,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=EDGE,
            scaling_factor=1.0,
        )
    with torch.no_grad():
        vae.quant_conv.weight[options.channels :] = 0
        vae.quant_conv.bias[options.channels :] = LOG_VARIANCE
    return vae


def reconstruction_loss(made: Tensor, real: Tensor) -> Tensor:
    """Return L1 + MSE + 0.5 L1 of the horizontal and vertical gradients, of [B, 3, H, W]."""
    down = F.l1_loss(made.diff(dim=2), real.diff(dim=2))
    across = F.l1_loss(made.diff(dim=3), real.diff(dim=3))
    return F.l1_loss(made, real) + F.mse_loss(made, real) + 0.5 * (down + across)


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Return each picture's peak signal-to-noise ratio in dB, of [B, 3, H, W] in [-1, 1]."""
    error = ((made.clamp(-1, 1) - real) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def stage(settings: RecipeSettings) -> loop.Stage:
    """Return the stage: what is trained, and its loss as a function of the step."""
    options, crop = settings.autoencoder, settings.autoencoder.crop
    vae = build(settings).to(settings.device)
    data = training_pictures(settings)
    shown = held_out(settings)[:: max(1, settings.check.heldout // 16)][:16]

    def rows(step: int, progress: float) -> dict[str, Tensor]:
        draw = generator(settings.seed, "vae", step)
        real = data[torch.randint(len(data), (options.batch,), generator=draw)]
        if progress < options.crop_share:
            room = (EDGE - crop) // FACTOR + 1
            top, left = (FACTOR * torch.randint(room, (2,), generator=draw)).tolist()
            real = real[:, :, top : top + crop, left : left + crop].contiguous()
        side = real.shape[-1] // FACTOR
        noise = torch.randn(len(real), options.channels, side, side, generator=draw)
        return {"real": real, "noise": noise}

    def loss(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real = to_float(rows["real"])
        with card.autocast(settings):
            posterior = vae.encode(real).latent_dist
            made = vae.decode(posterior.mean + posterior.std * rows["noise"]).sample.float()
        error = reconstruction_loss(made, real)
        kl = posterior.kl().mean()
        return {"loss": error + options.kl_weight * kl, "l1": F.l1_loss(made, real)}

    def sheet() -> Image.Image:
        real = to_float(shown)
        return contact_sheet(torch.cat([real, reconstruct(vae, real)]), columns=16)

    modules = {"vae": vae}
    return loop.Stage(
        name="autoencoder",
        modules=modules,
        optimizers=optim.build(vae.named_parameters(), options.lr, options.matrix_lr),
        rows=rows,
        loss=loss,
        options=options,
        ema=loop.EMA(modules, options.ema) if options.ema else None,
        sample=sheet,
    )


def held_out(settings: RecipeSettings) -> Tensor:
    """Return what it is measured on: held-out compositions, then photographs if there are any."""
    held, _ = compositions(settings, HELD_OUT, settings.check.heldout)
    folder = settings.check.photographs
    return torch.cat([held, held_out_photographs(folder)]) if folder else held


def train(settings: RecipeSettings, minutes: float | None = None) -> bool:
    """Train; at the end save the averaged weights to `work/autoencoder/model` and their figures."""
    trained = stage(settings)
    if not loop.fit(trained, settings, minutes):
        return False
    finish(trained, settings)
    return True


@torch.no_grad()
def reconstruct(vae: Any, real: Tensor) -> Tensor:
    """Return decode(encode(real)) by the latents' means, in [-1, 1], on the CPU."""
    there = (part.to(card.device_of(vae)) for part in real.split(32))
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.cpu() for part in there]
    return torch.cat(parts).clamp(-1, 1)


@torch.no_grad()
def whiten(vae: Any, pixels: Tensor) -> None:
    """Fold (z - mean) / deviation, channel by channel, into the convolutions around the latents.

    A pipeline knows one scaling factor for all channels; so every channel gets unit deviation and
    mean 0 from the network itself, to float rounding the same reconstructions, and the factor is 1.
    """
    there = (to_float(part.to(card.device_of(vae))) for part in pixels.split(32))
    parts = [vae.encode(part).latent_dist.mean for part in there]
    latents = torch.cat(parts).transpose(0, 1).flatten(1)
    mean, deviation = latents.mean(dim=1), latents.std(dim=1)
    count = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    encoder.weight[:count] /= deviation[:, None, None, None]
    encoder.bias[:count] = (encoder.bias[:count] - mean) / deviation
    encoder.bias[count:] -= 2 * deviation.log()
    decoder.bias += (decoder.weight[:, :, 0, 0] * mean).sum(dim=1)
    decoder.weight *= deviation[None, :, None, None]


@torch.no_grad()
def finish(trained: loop.Stage, settings: RecipeSettings) -> None:
    """Whiten the latents, save the model and its figures."""
    vae: Any = trained.modules["vae"]
    if trained.ema:
        trained.ema.swap()
    vae.eval()
    whiten(vae, compositions(settings, 0, min(512, settings.autoencoder.compositions))[0])
    folder = settings.work / "autoencoder"
    vae.save_pretrained(folder / "model")
    values = figures(vae, settings) | {"steps": settings.autoencoder.steps}
    write_json(folder / "figures.json", values)
    print(f"autoencoder {values}", flush=True)


def figures(vae: Any, settings: RecipeSettings) -> dict[str, float]:
    """Return the PSNR of held-out compositions and photographs: means over the pictures, in dB."""
    real = to_float(held_out(settings))
    values, count = psnr(reconstruct(vae, real), real), settings.check.heldout
    found = {"psnr_compositions": round(values[:count].mean().item(), 2)}
    if len(values) > count:
        found["psnr_photographs"] = round(values[count:].mean().item(), 2)
    return found


def open_trained(work: Path) -> Any:
    """Return the trained autoencoder of a work folder, frozen."""
    from diffusers import AutoencoderKL

    folder = work / "autoencoder" / "model"
    return AutoencoderKL.from_pretrained(folder).requires_grad_(False).eval()


def contact_sheet(pictures_b3hw: Tensor, columns: int) -> Image.Image:
    """Return pictures [B, 3, H, W] in [-1, 1] as one sheet, row by row."""
    return grid(to_images(pictures_b3hw), columns)
