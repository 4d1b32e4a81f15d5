"""DreamBooth's figures on unseen subjects: the pictures, and what the numbers are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emoji_recipe import autoencoder, clip, subjects
from emoji_recipe.measures import border_colour, nearest_colour
from emoji_recipe.nouns import COLOURS, NOUNS, SUBJECTS
from emoji_recipe.settings import RecipeSettings


def test_a_subject_is_shown_five_times_on_backgrounds_that_are_named(npm):
    settings = RecipeSettings(npm=npm)
    pictures, colours = subjects.instance_pictures(settings, "fox")
    assert len(set(colours)) == len(pictures) == subjects.PICTURES
    for picture, colour in zip(pictures, colours, strict=True):
        pixels = autoencoder.to_float(autoencoder.stacked([np.asarray(picture)]))[0]
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
        return colour.expand(count, 3, 128, 128).contiguous()

    blue = (torch.tensor(COLOURS["blue"]) / 127.5 - 1).view(1, 3, 1, 1).expand(4, 3, 128, 128)
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
    assert sheet.size == (subjects.LABEL + 10 * subjects.SHOWN, 6 * subjects.SHOWN)
    assert sheet.getpixel((subjects.LABEL + 5, subjects.SHOWN + 5)) == COLOURS["blue"]
