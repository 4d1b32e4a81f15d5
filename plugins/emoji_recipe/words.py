"""Stage `data`: the tokenizer, and sheets of the drawings and compositions for the eye."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from dreambooth.files import new_folder, write_text, write_with
from dreambooth_plugins.model.folder.tokenizer import save_tokenizer
from emoji_recipe import textures
from emoji_recipe.compose import compose
from emoji_recipe.drawings import read_drawings, read_sets
from emoji_recipe.grounds import EDGE
from emoji_recipe.nouns import NOUNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emoji_recipe.drawings import Drawing
    from emoji_recipe.settings import RecipeSettings

START, END = "<|startoftext|>", "<|endoftext|>"


def run(settings: RecipeSettings) -> None:
    """Fetch what is missing, train the tokenizer, write `work/data`."""
    drawings = read_drawings(settings.packages)
    items = [compose(drawings, settings.seed, index) for index in range(4000)]
    tokenizer = train_tokenizer(settings, [item.caption for item in items])
    folder = settings.work / "data"
    with new_folder(folder / "tokenizer") as beside:
        save_tokenizer(tokenizer, beside)
    write_with(folder / "drawings.png", drawing_sheet(drawings).save)
    sheet = Image.new("RGB", (EDGE * 12, EDGE * 10))
    seen = settings.autoencoder
    leaves = [textures.dead_leaves(settings.seed, i) for i in range(min(12, seen.leaves))]
    photographs = [textures.photograph(settings.seed, i) for i in range(min(12, seen.photographs))]
    for index, pixels in enumerate([*(i.pixels for i in items[:96]), *leaves, *photographs]):
        sheet.paste(Image.fromarray(pixels), (index % 12 * EDGE, index // 12 * EDGE))
    write_with(folder / "pictures.png", sheet.save)
    write_text(folder / "captions.txt", "\n".join(item.caption for item in items[:96]) + "\n")
    print(f"data {len(drawings)} drawings, {len(tokenizer)} tokens", flush=True)


def drawing_sheet(drawings: Sequence[Drawing], edge: int = 48) -> Image.Image:
    """Return every drawing on one sheet, a row a noun."""
    widest = max(sum(d.noun == noun for d in drawings) for noun in NOUNS)
    sheet = Image.new("RGB", (100 + edge * widest, edge * len(NOUNS)), (205, 221, 221))
    pen = ImageDraw.Draw(sheet)
    for row, noun in enumerate(NOUNS):
        pen.text((4, row * edge + edge // 3), noun, "black")
        for column, item in enumerate(d for d in drawings if d.noun == noun):
            small = item.picture.convert("RGBA").resize((edge - 4, edge - 4))
            sheet.paste(small, (100 + column * edge, row * edge + 2), small)
    return sheet


def train_tokenizer(settings: RecipeSettings, captions: list[str]) -> Any:
    """Return a `CLIPTokenizer` for the captions and the names of all drawings of a set.

    Byte-pair merges over bytes with CLIP's `</w>` endings: a word that was never seen (`ohwx`)
    falls into small pieces instead of an unknown token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    names = [name.replace("-", " ") for name in read_sets(settings.packages)["noto"]["icons"]]
    blank = CLIPTokenizer()
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = blank.backend_tokenizer.normalizer
    model.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.clip.vocabulary - 258,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator([*captions, *names], trainer)
    merges = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=settings.clip.max_length)


def open_tokenizer(settings: RecipeSettings) -> Any:
    """Return the trained tokenizer of the work folder; the stage runs if it has not."""
    from transformers import CLIPTokenizer

    folder = settings.work / "data" / "tokenizer"
    if not folder.is_dir():
        run(settings)
    return CLIPTokenizer.from_pretrained(folder)
