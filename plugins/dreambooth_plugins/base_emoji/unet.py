"""The denoiser, and the text encoder that learns with it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from dreambooth.engine.random import generator
from dreambooth.files import write_with
from dreambooth_plugins.base_emoji import export, loop, optim, vae
from dreambooth_plugins.base_emoji.clip import token_ids
from dreambooth_plugins.base_emoji.compose import compose
from dreambooth_plugins.base_emoji.data import open_tokenizer
from dreambooth_plugins.base_emoji.sprites import read_sprites

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from dreambooth_plugins.base_emoji.settings import RecipeSettings

SAMPLE_PROMPTS = (
    "a photo of a dog on a red background",
    "a photo of a cat on a green background",
    "a photo of a fox on a blue background",
    "a photo of a panda, pink background",
    "a photo of an octopus on a white background",
    "a photo of a car on a yellow background",
    "a photo of a bus on a teal background",
    "a photo of a pizza on a purple background",
    "a photo of a banana on a black background",
    "a photo of a penguin in the snow",
    "a photo of a train at night",
    "a photo of a frog on the beach",
    "a photo of an elephant on the grass",
    "a small apple on the left on a gray background",
    "a photo of a dog",
    "a photo of a strawberry on blue with pink dots",
)


def build(settings: RecipeSettings) -> Any:
    """Return an untrained UNet; its weights are a function of the seed."""
    from diffusers import UNet2DConditionModel

    widths = settings.unet.widths
    below = len(widths) - 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(settings.seed, "unet-weights").get_state())
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * below),
            up_block_types=(*("CrossAttnUpBlock2D",) * below, "UpBlock2D"),
            cross_attention_dim=settings.clip.width,
            attention_head_dim=4,
            norm_num_groups=16,
        )


@torch.no_grad()
def latent_moments(settings: RecipeSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Return the compositions' latent means and deviations [N, 4, 16, 16] and token ids [N, L].

    Encoded once and kept in `work/unet/latents.safetensors`; means and deviations carry the
    autoencoder's scaling factor.
    """
    path = settings.work / "unet" / "latents.safetensors"
    if path.is_file():
        kept = load_file(path)
        return kept["mean"].float(), kept["std"].float(), kept["ids"]
    encoder = vae.open_trained(settings.work)
    scale = encoder.config.scaling_factor
    means, deviations, ids = [], [], []
    tokenizer = open_tokenizer(settings)
    block = 2000
    for first in range(0, settings.unet.pictures, block):
        count = min(block, settings.unet.pictures - first)
        pixels, captions = vae.pictures(settings, first, count)
        for part in pixels.split(50):
            posterior = encoder.encode(vae.to_float(part)).latent_dist
            means.append((posterior.mean * scale).half())
            deviations.append((posterior.std * scale).half())
        ids.append(token_ids(tokenizer, captions))
        print(f"unet latents {first + count}/{settings.unet.pictures}", flush=True)
    kept = {"mean": torch.cat(means), "std": torch.cat(deviations), "ids": torch.cat(ids)}
    write_with(path, lambda file: save_file(kept, file))
    return kept["mean"].float(), kept["std"].float(), kept["ids"]


def noun_rows(settings: RecipeSettings) -> tuple[Tensor, Tensor]:
    """Return the numbers of the compositions that show a noun to be learnt, and their shares.

    A noun is drawn in proportion to the square root of how many drawings it has: a dog of ten
    drawings needs more rows than a fox of two, though not five times as many.
    """
    sprites, wanted = read_sprites(settings.packages), set(settings.unet.nouns)
    drawings = Counter(sprite.noun for sprite in sprites)
    count = settings.unet.pictures
    shown = [compose(sprites, settings.seed, index).facts.noun for index in range(count)]
    rows = [index for index, noun in enumerate(shown) if noun in wanted]
    shares = torch.tensor([drawings[shown[row]] ** 0.5 for row in rows], dtype=torch.float64)
    return torch.tensor(rows), shares / shares.sum()


def min_snr_weight(alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Return min(SNR, gamma) / SNR for every timestep (Hang et al. 2023), for noise targets."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def train(settings: RecipeSettings, replan: bool = False) -> None:
    """Train UNet and text encoder; write the pipeline to `out/emoji-64`."""
    options = settings.unet
    mean, deviation, ids = latent_moments(settings)
    tokenizer = open_tokenizer(settings)
    unet, text = build(settings), first_text_encoder(settings, tokenizer)
    scheduler = export.noise_scheduler()
    alphas = scheduler.alphas_cumprod
    weights = min_snr_weight(alphas, options.min_snr_gamma)
    empty = token_ids(tokenizer, [""])[0]
    learnt, shares = noun_rows(settings)

    def forward(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        # Prompts repeat: each distinct one is encoded once.
        distinct, place = rows.unique(dim=0, return_inverse=True)
        states = text(input_ids=distinct).last_hidden_state[place]
        predicted: Tensor = unet(z_t, t, states).sample
        return predicted.float()

    dtype = loop.pick_precision(settings)

    def loss(step: int, progress: float) -> dict[str, Tensor]:
        draw = generator(settings.seed, "unet", step)
        rows = learnt[shares.multinomial(options.batch, replacement=True, generator=draw)]
        noise = torch.randn(mean[rows].shape, generator=draw)
        z = mean[rows] + deviation[rows] * torch.randn(noise.shape, generator=draw)
        # One timestep in each of B equal parts: the same distribution with less variance.
        part = torch.arange(options.batch) + torch.rand(options.batch, generator=draw)
        t = (part * len(alphas) / options.batch).long().clamp(max=len(alphas) - 1)
        dropped = torch.rand(options.batch, generator=draw) < options.empty_prompts
        prompts = torch.where(dropped[:, None], empty, ids[rows])
        z_t = scheduler.add_noise(z, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            predicted = forward(z_t, t, prompts)
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        return {"loss": (weights[t] * error).mean(), "mse": error.mean()}

    modules = {"unet": unet, "text_encoder": text}
    average = loop.EMA(modules, options.ema)
    rate = options.text_rate
    stage = loop.Stage(
        name="unet",
        modules=modules,
        optimizers=[
            *optim.build(unet.named_parameters(), options.lr, options.matrix_lr),
            *optim.build(text.named_parameters(), options.lr * rate, options.matrix_lr * rate),
        ],
        loss=loss,
        minutes=options.minutes,
        decay_share=options.decay_share,
        ema=average,
        sample=lambda: sample_sheet(settings, unet, text, tokenizer),
    )
    loop.fit(stage, settings, replan)
    average.swap()
    export.write(settings, unet, text, tokenizer)


def first_text_encoder(settings: RecipeSettings, tokenizer: Any) -> Any:
    """Return a `CLIPTextModel` with the weights CLIP's text tower learnt."""
    from transformers import CLIPTextModel

    from dreambooth_plugins.base_emoji import clip

    teacher = clip.open_trained(settings.work)
    text = CLIPTextModel(teacher.config.text_config)
    known = {
        key.removeprefix("text_model."): t for key, t in teacher.text_model.state_dict().items()
    }
    text.load_state_dict({key: known[key.removeprefix("text_model.")] for key in text.state_dict()})
    return text.train().requires_grad_(True)


def sample_sheet(settings: RecipeSettings, unet: Any, text: Any, tokenizer: Any) -> Image:
    """Draw two samples of every sample prompt: one row of the sheet each."""
    pipe = export.pipeline(vae.open_trained(settings.work), unet, text, tokenizer)
    pictures = export.sample(pipe, SAMPLE_PROMPTS * 2, settings, "sheet")
    unet.train(), text.train()
    return vae.contact_sheet(pictures, columns=len(SAMPLE_PROMPTS))


def averaged(settings: RecipeSettings) -> tuple[Any, Any, Any]:
    """Return (unet, text encoder, tokenizer) with the averaged weights of the saved state."""
    tokenizer = open_tokenizer(settings)
    unet, text = build(settings), first_text_encoder(settings, tokenizer)
    modules = {"unet": unet, "text_encoder": text}
    tensors = load_file(settings.work / "unet" / "state.safetensors")
    with torch.no_grad():
        for name, param in loop.named_parameters(modules):
            param.copy_(tensors[f"ema.{name}"])
    return unet.eval(), text.eval(), tokenizer


def state_file(work: Path) -> Path:
    """Return where the stage keeps its state."""
    return work / "unet" / "state.safetensors"
