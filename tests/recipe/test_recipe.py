"""The recipe from the outside, and what the shipped model has to hold."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from dreambooth.errors import JobError
from emoji_recipe import __main__ as recipe
from emoji_recipe import export
from emoji_recipe.measures import border_colour, nearest_colour
from emoji_recipe.nouns import COLOURS
from emoji_recipe.settings import BASES, RecipeSettings

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = BASES / "emoji-64"
shipped = pytest.mark.skipif(
    not (SHIPPED / "model_index.json").is_file(), reason="the weights are not in this checkout"
)


def test_recipe_starts_without_torch() -> None:
    code = "import sys; import emoji_recipe.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_setting_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"clip": {"widht": 8}}))
    with pytest.raises(JobError, match="widht"):
        recipe.build_settings({}, file)


def test_unknown_stage_lists_the_stages() -> None:
    import typer

    app = typer.Typer()
    app.command()(recipe.main)
    done = CliRunner().invoke(app, ["--stage", "unnet"])
    assert done.exit_code == 2
    assert "data, autoencoder, clip, denoiser, export, check, unpack" in done.stderr


@pytest.mark.parametrize("name", list(COLOURS))
def test_border_colour_names_the_background_despite_the_subject(name: str) -> None:
    picture = torch.tensor(COLOURS[name], dtype=torch.float32)[:, None, None].repeat(1, 64, 64)
    picture[:, 10:54, 10:64] = 128.0
    assert nearest_colour(border_colour(picture / 127.5 - 1)) == name


@shipped
def test_shipped_folders_are_small_and_their_parts_fit_together() -> None:
    judge = BASES / "emoji-64-clip"
    assert export.size_mb(SHIPPED) + export.size_mb(judge) <= 40
    index = json.loads((SHIPPED / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    unet = json.loads((SHIPPED / "unet" / "config.json").read_text())
    text = json.loads((SHIPPED / "text_encoder" / "config.json").read_text())
    assert unet["cross_attention_dim"] == text["hidden_size"]
    vocabulary = json.loads((SHIPPED / "tokenizer" / "vocab.json").read_text())
    assert len(vocabulary) == text["vocab_size"]
    for folder in (SHIPPED / "tokenizer", judge):
        assert (folder / "merges.txt").is_file()


@shipped
def test_shipped_model_draws_the_prompted_background() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(SHIPPED)
    settings = RecipeSettings.model_validate({"check": {"steps": 12}})
    pipe.set_progress_bar_config(disable=True)
    colours = ("red", "blue", "yellow", "black")
    prompts = [f"a photo of a dog on a {colour} background" for colour in colours]
    made = export.sample(pipe, prompts, settings, "test")
    seen = [nearest_colour(border_colour(picture)) for picture in made]
    assert sum(a == b for a, b in zip(seen, colours, strict=True)) >= 3
