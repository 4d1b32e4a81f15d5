"""What the recipe's tests share: a small package of drawings, and settings that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from packages import write_package

from emoji_recipe.settings import RecipeSettings

SMALL = {
    "precision": "fp32",
    "sample_every": 1_000,
    "autoencoder": {
        "widths": [8, 8, 8, 8],
        "channels": 4,
        "steps": 6,
        "batch": 2,
        "compositions": 8,
        "leaves": 2,
        "photographs": 0,
    },
    "clip": {
        "width": 32,
        "text_layers": 1,
        "vision_layers": 1,
        "patch": 32,
        "steps": 6,
        "batch": 4,
    },
    "denoiser": {
        "widths": [16, 16, 16],
        "steps": 6,
        "batch": 4,
        "block": 64,
        "blocks": 2,
        "refresh": 2,
    },
    "check": {"heldout": 8, "prompts": 4, "pairs": 2, "diversity": 4, "steps": 2, "subjects": []},
}
"""Settings of a recipe that runs in seconds on plain shapes."""


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package of plain shapes."""
    folder: Path = tmp_path_factory.mktemp("npm")
    write_package(folder)
    return folder


@pytest.fixture
def small(npm: Path, tmp_path: Path) -> RecipeSettings:
    """Return small settings with a work folder of their own."""
    return RecipeSettings.model_validate(
        SMALL | {"npm": npm, "work": tmp_path / "work", "out": tmp_path / "out"}
    )
