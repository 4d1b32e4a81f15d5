"""The recipe from the outside, and what the shipped model has to hold."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from test_base_emoji_compose import write_packages
from typer.testing import CliRunner

from dreambooth.errors import JobError
from dreambooth_plugins.base_emoji import export, recipe
from dreambooth_plugins.base_emoji.measures import border_colour, nearest_colour
from dreambooth_plugins.base_emoji.nouns import COLOURS
from dreambooth_plugins.base_emoji.settings import HERE, RecipeSettings

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = HERE / export.PIPELINE
shipped = pytest.mark.skipif(
    not (SHIPPED / "model_index.json").is_file(), reason="the weights are not in this checkout"
)


def test_recipe_starts_without_torch() -> None:
    code = (
        "import sys; import dreambooth_plugins.base_emoji.recipe; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_minutes_of_a_stage_and_of_all_stages() -> None:
    one = recipe.build_settings({}, None, "vae", 3)
    assert one.vae.minutes == pytest.approx(3)
    whole = recipe.build_settings({}, None, None, 10)
    shares = [getattr(whole, name).minutes for name in ("vae", "clip", "unet")]
    assert sum(shares) == pytest.approx(10)
    plain = RecipeSettings()
    assert shares[0] / shares[2] == pytest.approx(plain.vae.minutes / plain.unet.minutes)


def test_unknown_setting_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"vae": {"widhts": [8]}}))
    with pytest.raises(JobError, match="widhts"):
        recipe.build_settings({}, file, None, None)


def test_unknown_stage_lists_the_stages() -> None:
    import typer

    app = typer.Typer()
    app.command()(recipe.main)
    done = CliRunner().invoke(app, ["--stage", "unnet"])
    assert done.exit_code == 2
    assert "data, vae, clip, unet, check" in done.stderr


@pytest.mark.parametrize("name", list(COLOURS))
def test_border_colour_names_the_background_despite_the_subject(name: str) -> None:
    picture = torch.tensor(COLOURS[name], dtype=torch.float32)[:, None, None].repeat(1, 64, 64)
    picture[:, 10:54, 10:64] = 128.0
    assert nearest_colour(border_colour(picture / 127.5 - 1)) == name


@shipped
def test_shipped_folders_are_small_and_their_parts_fit_together() -> None:
    judge = HERE / export.JUDGE
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


@pytest.mark.slow
def test_three_minutes_of_the_recipe_end_in_a_pipeline_that_loads(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    npm = tmp_path / "npm"
    npm.mkdir()
    write_packages(npm)
    file = tmp_path / "settings.json"
    small = {
        "precision": "fp32",
        "vae": {"widths": [16, 16, 32], "pictures": 256},
        "clip": {"width": 64, "batch": 16},
        "unet": {"widths": [32, 32, 64], "pictures": 256, "batch": 16},
        "check": {"heldout": 32, "prompts": 24, "diversity": 8, "steps": 8, "subjects": []},
    }
    file.write_text(json.dumps(small))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dreambooth_plugins.base_emoji.recipe", "--minutes", "3"]
    command += ["--work", tmp_path / "work", "--npm", npm, "--out", out, "--config", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "check vae_psnr_db" in done.stdout
    figures = json.loads((out / "figures.json").read_text())
    assert figures["vae_psnr_db"] > 14
    pipe = StableDiffusionPipeline.from_pretrained(out / "emoji-64")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a photo of a fox", height=64, width=64, num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
