"""Models that come with the trainer: `builtin:NAME`."""

from __future__ import annotations

import difflib
from pathlib import Path

from dreambooth.errors import JobError

PREFIX = "builtin:"
CONFIGS = Path(__file__).parent / "configs"
BASES = Path(__file__).parents[1] / "base_emoji"
TINY, EMOJI = ("tiny", "tiny-sd2", "tiny-sdxl"), ("emoji-64", "emoji-128")


def _unknown(name: str, known: list[str], what: str) -> JobError:
    close = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"did you mean {PREFIX}{close[0]}?" if close else ""
    listed = "there are " + ", ".join(PREFIX + k for k in known)
    return JobError(f"no built-in {what} {name!r}", f"{hint} {listed}".strip())


def base_folder(name: str, *, build: bool) -> Path:
    """Return the diffusers folder of a built-in base model.

    `tiny`, `tiny-sd2` and `tiny-sdxl` (random weights, for tests and dry runs) are made in the
    user's cache on first use; with `build=False` their configuration alone serves until then.
    """
    if name in TINY:
        from dreambooth_plugins.model.tiny import tiny_folder

        return tiny_folder(name, build=build)
    if name not in EMOJI:
        raise _unknown(name, [*EMOJI, *TINY], "model")
    folder = BASES / name
    if not (folder / "model_index.json").is_file():
        raise JobError(
            f"the built-in model {name} is not part of this installation",
            "install the complete package, or train it with the repository's emoji_recipe",
        )
    return folder


def config_folder(name: str) -> Path:
    """Return the shipped diffusers configuration `name` (sd15, sd20-base, sd21, sdxl)."""
    known = sorted(path.name for path in CONFIGS.iterdir() if path.name not in TINY)
    if name not in known:
        raise _unknown(name, known, "configuration")
    return CONFIGS / name
