"""Stage `data`: the packages, the tokenizer, and a sheet of compositions for the eye."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dreambooth.files import new_folder, write_text, write_with
from dreambooth_plugins.base_emoji.compose import compose
from dreambooth_plugins.base_emoji.sprites import open_vendor, read_sprites

if TYPE_CHECKING:
    from dreambooth_plugins.base_emoji.settings import RecipeSettings

START, END = "<|startoftext|>", "<|endoftext|>"


def run(settings: RecipeSettings) -> None:
    """Fetch what is missing, train the tokenizer, write `work/data`."""
    sprites = read_sprites(settings.packages)
    items = [compose(sprites, settings.seed, index) for index in range(2000)]
    tokenizer = train_tokenizer(settings, [item.caption for item in items])
    folder = settings.work / "data"
    from dreambooth_plugins.model.saving import save_tokenizer

    with new_folder(folder / "tokenizer") as beside:
        save_tokenizer(tokenizer, beside)
    from PIL import Image

    sheet = Image.new("RGB", (64 * 16, 64 * 8))
    for index, item in enumerate(items[:128]):
        sheet.paste(Image.fromarray(item.pixels), (index % 16 * 64, index // 16 * 64))
    write_with(folder / "compositions.png", sheet.save)
    write_text(folder / "captions.txt", "\n".join(item.caption for item in items[:128]) + "\n")
    print(f"data {len(sprites)} drawings, {len(tokenizer)} tokens", flush=True)


def train_tokenizer(settings: RecipeSettings, captions: list[str]) -> Any:
    """Return a `CLIPTokenizer` for the captions and every emoji's name.

    Byte-pair merges over bytes with CLIP's `</w>` endings: a word that was never seen (`ohwx`)
    falls into small pieces instead of an unknown token.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    with open_vendor("google", settings.packages) as archive:
        table = archive.extractfile("package/emoji.json")
        names = [entry["name"].lower() for entry in json.load(table)] if table else []
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
    """Return the trained tokenizer of the work folder."""
    from transformers import CLIPTokenizer

    folder = settings.work / "data" / "tokenizer"
    if not folder.is_dir():
        run(settings)
    return CLIPTokenizer.from_pretrained(folder)
