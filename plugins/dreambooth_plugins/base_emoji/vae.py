"""The autoencoder: `AutoencoderKL`, 64 x 64 pixels to 16 x 16 x 4 latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from dreambooth.engine.pictures import grid, to_images
from dreambooth.engine.random import generator
from dreambooth.files import write_json
from dreambooth_plugins.base_emoji import loop, optim
from dreambooth_plugins.base_emoji.compose import EDGE, HELD_OUT, compose
from dreambooth_plugins.base_emoji.sprites import read_sprites

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from dreambooth_plugins.base_emoji.settings import RecipeSettings

LOG_VARIANCE = -6.0
"""Where the latents' log-variance begins: noise of 0.05, or the first steps are lost."""


def pictures(settings: RecipeSettings, first: int, count: int) -> tuple[Tensor, list[str]]:
    """Return compositions as uint8 [N, 3, 64, 64] and their captions."""
    sprites = read_sprites(settings.packages)
    items = [compose(sprites, settings.seed, first + i) for i in range(count)]
    stacked = np.stack([item.pixels for item in items])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
    return pixels, [item.caption for item in items]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures of one size as uint8 [N, 3, H, W]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def build(settings: RecipeSettings) -> Any:
    """Return an untrained autoencoder; its weights are a function of the seed."""
    from diffusers import AutoencoderKL

    widths = settings.vae.widths
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(settings.seed, "vae-weights").get_state())
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=EDGE,
        )
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = LOG_VARIANCE
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


def train(settings: RecipeSettings, replan: bool = False) -> None:
    """Train, measure on held-out pictures, and save to `work/vae/model`."""
    options = settings.vae
    data, _ = pictures(settings, 0, options.pictures)
    held, _ = pictures(settings, HELD_OUT, settings.check.heldout)
    vae = build(settings)
    cut = options.crop

    def autoencode(real: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(real).latent_dist
        made = vae.decode(posterior.sample(noise)).sample
        return made.float(), posterior.kl().mean()

    dtype = loop.pick_precision(settings)

    def loss(step: int, progress: float) -> dict[str, Tensor]:
        draw = generator(settings.seed, "vae", step)
        rows = torch.randint(len(data), (options.batch,), generator=draw)
        real = data[rows]
        if progress < options.crop_share:
            top, left = torch.randint((EDGE - cut) // 4 + 1, (2,), generator=draw).tolist()
            real = real[:, :, 4 * top : 4 * top + cut, 4 * left : 4 * left + cut]
        real = to_float(real)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made, kl = autoencode(real, draw)
        error = reconstruction_loss(made, real)
        return {"loss": error + options.kl_weight * kl, "l1": F.l1_loss(made, real)}

    def sheet() -> Image.Image:
        real = to_float(held[:16])
        return contact_sheet(torch.cat([real, reconstruct(vae, real)]), columns=16)

    params = vae.named_parameters()
    stage = loop.Stage(
        name="vae",
        modules={"vae": vae},
        optimizers=optim.build(params, options.lr, options.matrix_lr),
        loss=loss,
        minutes=options.minutes,
        sample=sheet,
    )
    loop.fit(stage, settings, replan)
    finish(vae, data, held, settings)


@torch.no_grad()
def reconstruct(vae: Any, real: Tensor) -> Tensor:
    """Return decode(encode(real)) by the latents' means, in [-1, 1]."""
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in real.split(32)]
    return torch.cat(parts).clamp(-1, 1)


@torch.no_grad()
def finish(vae: Any, data: Tensor, held: Tensor, settings: RecipeSettings) -> None:
    """Fix the scaling factor (1 / std of the latents), save the model and its figures."""
    vae.eval()
    parts = [vae.encode(to_float(part)).latent_dist.mean for part in data[:512].split(32)]
    vae.register_to_config(scaling_factor=round(1 / torch.cat(parts).std().item(), 5))
    folder = settings.work / "vae"
    vae.save_pretrained(folder / "model")
    values = psnr(reconstruct(vae, to_float(held)), to_float(held))
    of_mean = -10 * (10 ** (-values / 10)).mean().log10()
    figures = {
        "psnr_heldout": round(values.mean().item(), 2),
        "psnr_of_mean_error": round(of_mean.item(), 2),
        "pictures": len(held),
        "scaling_factor": vae.config.scaling_factor,
    }
    write_json(folder / "figures.json", figures)
    print(f"vae {figures}", flush=True)


def open_trained(folder: Path) -> Any:
    """Return the trained autoencoder of a work folder, frozen."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder / "vae" / "model").requires_grad_(False).eval()


def contact_sheet(pictures_b3hw: Tensor, columns: int) -> Image.Image:
    """Return pictures [B, 3, H, W] in [-1, 1] as one sheet, row by row."""
    return grid(to_images(pictures_b3hw), columns)
