"""The denoiser, and the text encoder that learns with it."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from dreambooth.files import write_with
from dreambooth.helpers.random import generator
from emoji_recipe import autoencoder, card, loop, optim
from emoji_recipe.clip import token_ids
from emoji_recipe.objectives import objective, sample
from emoji_recipe.words import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings

SAMPLE_PROMPTS = (
    "a photo of a dog on a red background",
    "a photo of a cat on a green background",
    "a photo of a fox on a blue background",
    "a photo of a panda, pink background",
    "a photo of an octopus on a white background",
    "a photo of a car on a yellow background",
    "a photo of a backpack on a teal background",
    "a photo of a teapot on a purple background",
    "a photo of a hamburger on a black background",
    "a photo of a penguin in the snow",
    "a photo of a train at night",
    "a photo of a frog on the beach",
    "a photo of an elephant in the desert",
    "a photo of a rocket on the moon",
    "a small apple on the left on a gray background",
    "a photo of a dog",
    "a blue cat on a textured orange background",
    "a photo of a strawberry on blue with pink dots",
    "a photo of a lion and a banana on a green background",
    "a photo of a cup next to a clock on a wooden table",
)
SIDE = 16
"""Latents are SIDE x SIDE."""


def build(settings: RecipeSettings) -> Any:
    """Return an untrained network; its weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(settings.seed, "denoiser-weights").get_state())
        return _unet(settings) if settings.denoiser.network == "unet" else _dit(settings)


def _unet(settings: RecipeSettings) -> Any:
    """Return a `UNet2DConditionModel`: plain at 16 x 16, cross-attention below."""
    from diffusers import UNet2DConditionModel

    widths, channels = settings.denoiser.widths, settings.autoencoder.channels
    below = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=settings.denoiser.layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * below),
        up_block_types=(*("CrossAttnUpBlock2D",) * below, "UpBlock2D"),
        cross_attention_dim=settings.clip.width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def _dit(settings: RecipeSettings) -> Any:
    """Return a transformer over patches of 2 x 2 latents with cross-attention (PixArt's blocks)."""
    from diffusers import PixArtTransformer2DModel

    width, channels = settings.denoiser.widths[0], settings.autoencoder.channels
    return PixArtTransformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=width // 48,
        attention_head_dim=48,
        num_layers=settings.denoiser.layers,
        cross_attention_dim=width,
        caption_channels=settings.clip.width,
        use_additional_conditions=False,
    )


def predictor(settings: RecipeSettings, network: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return predict(z_t, t [B], states [B, L, D]) -> [B, C, H, W] in fp32, for either network."""
    unet = settings.denoiser.network == "unet"

    def predict(z_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
        with card.autocast(settings):
            made: Tensor = (
                network(z_t, t, states).sample
                if unet
                else network(
                    z_t,
                    states,
                    timestep=t,
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                ).sample
            )
        return made.float()

    return predict


class Latents:
    """Latents of fresh compositions, block by block: row draws are functions of the step.

    Block b holds compositions b * block .. (b + 1) * block - 1, encoded once and kept in a file;
    step s draws from the newest `blocks` up to number s // refresh. Older files are removed.
    """

    def __init__(self, settings: RecipeSettings) -> None:
        self.settings, self.options = settings, settings.denoiser
        self.tokenizer = open_tokenizer(settings)
        self.folder = settings.work / "denoiser" / "latents"
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self._encoder: Any = None

    def wanted(self, step: int) -> range:
        """Return the blocks that rows of a step are drawn from."""
        newest = step // self.options.refresh
        return range(max(0, newest - self.options.blocks + 1), newest + 1)

    def ready(self, step: int) -> None:
        """Encode the blocks of a step that are not there, and remove those no step draws from.

        With workers, steps are asked for ahead of time: one block more is kept for those behind.
        On a card all blocks of the training are made at once, which it does in a minute.
        """
        last = self.options.steps - 1 if self.settings.device == "cuda" else step
        blocks = range(self.wanted(step)[0], self.wanted(last)[-1] + 1)
        if missing := [number for number in blocks if not self._file(number).is_file()]:
            self._encode(missing)
        behind = self.wanted(step)[0] - bool(self.settings.workers)
        for file in self.folder.glob("*.safetensors") if step % self.options.refresh == 0 else ():
            if int(file.stem) < behind:
                file.unlink(missing_ok=True)

    def rows(self, step: int, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents [count, C, 16, 16] and token ids [count, L] for a step that is ready."""
        wanted = self.wanted(step)
        for number in wanted:
            if number not in self.held:
                kept = load_file(self._file(number))
                self.held[number] = kept["latents"], kept["ids"]
        for number in [n for n in self.held if n not in wanted]:
            del self.held[number]
        places = torch.randint(len(wanted) * self.options.block, (count,), generator=draw)
        which = [(wanted[p // self.options.block], p % self.options.block) for p in places.tolist()]
        z = torch.stack([self.held[number][0][row] for number, row in which]).float()
        return z, torch.stack([self.held[number][1][row] for number, row in which])

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    @torch.no_grad()
    def _encode(self, numbers: Sequence[int]) -> None:
        if self._encoder is None:
            opened = autoencoder.open_trained(self.settings.work)
            self._encoder = opened.to(self.settings.device)
        size = self.options.block
        pieces = [piece for n in numbers for piece in autoencoder.spans(n * size, size)]
        drawn = autoencoder.drawn(self.settings, pieces)
        for number in numbers:
            latents: list[Tensor] = []
            ids: list[Tensor] = []
            for pixels, captions in islice(drawn, len(autoencoder.spans(0, size))):
                ids.append(token_ids(self.tokenizer, captions))
                latents += self._means(pixels)
            made = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
            write_with(self._file(number), partial(save_file, made))
            print(f"denoiser: drew and encoded block {number}", flush=True)

    def _means(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the latents' means of uint8 pictures, in half precision."""
        for part in pixels.split(25 if self.settings.device == "cpu" else 250):
            with card.autocast(self.settings):
                shown = autoencoder.to_float(part.to(self.settings.device))
                yield self._encoder.encode(shown).latent_dist.mean.half().cpu()


def stage(settings: RecipeSettings) -> loop.Stage:
    """Return the stage: network and text encoder, and their loss as a function of the step."""
    options = settings.denoiser
    network, text = build(settings).to(settings.device), first_text_encoder(settings)
    predict = predictor(settings, network)
    aim = objective(options.objective, options.min_snr_gamma)
    latents = Latents(settings)
    empty = token_ids(latents.tokenizer, [""])[0]

    def rows(step: int, progress: float) -> dict[str, Tensor]:
        draw = generator(settings.seed, "denoiser", step)
        z, ids = latents.rows(step, options.batch, draw)
        noise = torch.randn(z.shape, generator=draw)
        dropped = torch.rand(options.batch, generator=draw) < options.empty_prompts
        return {
            "ids": torch.where(dropped[:, None], empty, ids),
            **vars(aim.noised(z, noise, draw)),
        }

    def loss(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        error = predict(rows["z_t"], rows["t"], states(text, rows["ids"])) - rows["target"]
        mse = error.square().mean(dim=(1, 2, 3))
        return {"loss": (rows["weight"] * mse).mean(), "mse": mse.mean()}

    modules = {"network": network, "text_encoder": text}
    rate = options.text_rate
    return loop.Stage(
        name="denoiser",
        modules=modules,
        optimizers=[
            *optim.build(network.named_parameters(), options.lr, options.matrix_lr),
            *optim.build(text.named_parameters(), options.lr * rate, options.matrix_lr * rate),
        ],
        rows=rows,
        loss=loss,
        options=options,
        ema=loop.EMA(modules, options.ema) if options.ema else None,
        sample=lambda: sample_sheet(settings, network, text),
        ready=latents.ready,
    )


def states(text: Any, ids: Tensor) -> Tensor:
    """Return the text encoder's states [B, L, D] of token ids [B, L].

    Prompts repeat: on a CPU each distinct one is encoded once. A card does not wait for a count.
    """
    if ids.device.type != "cpu":
        made: Tensor = text(input_ids=ids).last_hidden_state
        return made
    distinct, place = ids.unique(dim=0, return_inverse=True)
    of_each: Tensor = text(input_ids=distinct).last_hidden_state[place]
    return of_each


def train(settings: RecipeSettings, minutes: float | None = None) -> bool:
    """Train network and text encoder; the averaged weights are in the saved state."""
    return loop.fit(stage(settings), settings, minutes)


def first_text_encoder(settings: RecipeSettings) -> Any:
    """Return a `CLIPTextModel` with the weights CLIP's text tower learnt."""
    from transformers import CLIPTextModel

    from emoji_recipe import clip

    teacher = clip.open_trained(settings.work)
    text = CLIPTextModel(teacher.config.text_config)
    known = {
        key.removeprefix("text_model."): t for key, t in teacher.text_model.state_dict().items()
    }
    text.load_state_dict({key: known[key.removeprefix("text_model.")] for key in text.state_dict()})
    return text.train().requires_grad_(True).to(settings.device)


@torch.no_grad()
def draw(
    settings: RecipeSettings, network: Any, text: Any, prompts: list[str], stream: str
) -> Tensor:
    """Return one picture a prompt, [B, 3, 128, 128] in [-1, 1]; noise by (seed, stream, place)."""
    device = card.device_of(network)
    tokenizer, decoder = (
        open_tokenizer(settings),
        autoencoder.open_trained(settings.work).to(device),
    )
    aim = objective(settings.denoiser.objective, settings.denoiser.min_snr_gamma)
    predict = predictor(settings, network)
    cond = text(input_ids=token_ids(tokenizer, prompts).to(device)).last_hidden_state
    empty = text(input_ids=token_ids(tokenizer, [""] * len(prompts)).to(device)).last_hidden_state
    shape = (settings.autoencoder.channels, SIDE, SIDE)
    draws = [generator(settings.seed, stream, place) for place in range(len(cond))]
    noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
    check = settings.check
    z = sample(predict, aim.solver(), noise.to(device), cond, empty, check.steps, check.guidance)
    return torch.cat([decoder.decode(part).sample.cpu() for part in z.split(16)]).clamp(-1, 1)


def sample_sheet(settings: RecipeSettings, network: Any, text: Any) -> Image:
    """Draw every sample prompt twice: two rows of ten, and again."""
    pictures = draw(settings, network.eval(), text.eval(), list(SAMPLE_PROMPTS * 2), "sheet")
    network.train(), text.train()
    return autoencoder.contact_sheet(pictures, columns=len(SAMPLE_PROMPTS) // 2)


def averaged(settings: RecipeSettings) -> tuple[Any, Any]:
    """Return (network, text encoder) with the averaged weights of the saved state."""
    network, text = build(settings), first_text_encoder(settings)
    tensors = load_file(settings.work / "denoiser" / loop.STATE)
    prefix = "ema" if settings.denoiser.ema else "model"
    with torch.no_grad():
        for name, param in loop.named_parameters({"network": network, "text_encoder": text}):
            param.copy_(tensors[f"{prefix}.{name}"])
    return network.eval(), text.eval()
