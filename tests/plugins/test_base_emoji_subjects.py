"""DreamBooth's figures on unseen subjects: the pictures, and what the numbers are made of."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from dreambooth_plugins.base_emoji import clip, subjects, vae
from dreambooth_plugins.base_emoji.measures import border_colour, nearest_colour
from dreambooth_plugins.base_emoji.nouns import COLOURS, NOUNS, SUBJECTS
from dreambooth_plugins.base_emoji.settings import RecipeSettings

if TYPE_CHECKING:
    from pathlib import Path


def write_fluent(folder: Path) -> None:
    package, version = subjects.FLUENT
    name = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(folder / name, "w:gz") as archive:
        for code in SUBJECTS.values():
            data = io.BytesIO()
            drawing = Image.new("RGBA", (256, 256))
            drawing.paste((250, 120, 20, 255), (64, 64, 192, 192))
            drawing.save(data, "WEBP", lossless=True)
            info = tarfile.TarInfo(f"package/assets/{code}.webp")
            info.size = data.tell()
            data.seek(0)
            archive.addfile(info, data)


def test_a_subject_is_shown_five_times_on_backgrounds_that_are_named(tmp_path):
    write_fluent(tmp_path)
    settings = RecipeSettings(npm=tmp_path)
    pictures, colours = subjects.instance_pictures(settings, "fox")
    assert len(set(colours)) == len(pictures) == subjects.PICTURES
    for picture, colour in zip(pictures, colours, strict=True):
        pixels = vae.to_float(vae.to_tensor([picture]))[0]
        assert nearest_colour(border_colour(pixels)) == colour
    again, _ = subjects.instance_pictures(settings, "fox")
    assert [p.tobytes() for p in again] == [p.tobytes() for p in pictures]
    assert subjects.instance_pictures(settings, "octopus")[1] != colours


def test_subjects_are_of_classes_the_base_knows():
    assert SUBJECTS.keys() <= NOUNS.keys()


def test_figures_are_shares_of_the_way_from_the_base_to_the_real_pictures(monkeypatch):
    # A picture's embedding is its mean colour: red is the subject, green the base's class.
    def embed(judge, pictures):
        return torch.nn.functional.normalize(pictures.mean(dim=(2, 3)) + 1, dim=-1)

    monkeypatch.setattr(clip, "image_features", embed)

    def flat(red, green, count=4):
        colour = torch.tensor([red, green, 0.0]).view(1, 3, 1, 1) * 2 - 1
        return colour.expand(count, 3, 64, 64).contiguous()

    blue = (torch.tensor(COLOURS["blue"]) / 127.5 - 1).view(1, 3, 1, 1).expand(4, 3, 64, 64)
    drawn = {
        "instances": flat(1, 0),
        "base": flat(0, 1),
        "itself": flat(3, 4),
        "placed": blue,
        "kept": flat(0, 1),
        "lost": flat(1, 0),
    }
    figures = subjects.subject_figures(None, drawn, ["blue", "blue", "blue", "red"])
    assert figures["similarity_base"] == pytest.approx(0)
    assert figures["similarity_real"] == pytest.approx(1)
    assert figures["similarity_share"] == pytest.approx(0.6)
    assert figures["background_right"] == 0.75
    assert figures["pres_prior"] < figures["pres_none"]
    sheet = subjects.labelled_sheet({**drawn, "before": blue}, "fox")
    assert sheet.size == (subjects.LABEL + 10 * subjects.SHOWN, 5 * subjects.SHOWN)
    assert sheet.getpixel((subjects.LABEL + 5, subjects.SHOWN + 5)) == COLOURS["blue"]
