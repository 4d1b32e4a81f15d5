"""PNG texts as other programs' rules take them apart, literally."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from dreambooth.helpers.infotext import infotext
from dreambooth.helpers.pictures import save_picture

SETTINGS = {
    "prompt": "a photo of ohwx dog", "seed": 4163, "run": "my-dog", "weights": "final",
    "step": 400, "size": [64, 96],
    "sampler": {"kind": "cfg", "guidance_scale": 7.5, "steps": 30, "solver": "dpmpp_2m_karras",
                "negative": "blurry, grey"},
}  # fmt: skip
LITERAL = (
    "a photo of ohwx dog\n"
    "Negative prompt: blurry, grey\n"
    "Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 4163, Size: 96x64, "
    "Model: my-dog, Training step: 400"
)


def by_a1111(text: str) -> dict[str, str]:
    """The last line is settings where it has three, `name: value` or `name: "value"`."""
    setting = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    assert len(setting.findall(last)) >= 3
    found = {"prompt": "", "negative": ""}
    where = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            where, line = "negative", line.removeprefix("Negative prompt:")
        found[where] += line.strip()
    values = {name: v for name, v in setting.findall(last)}
    return found | {n: json.loads(v) if v.startswith('"') else v for n, v in values.items()}


def by_comfyui(text: str) -> dict[str, str]:
    """Settings follow the last line that begins with Steps, the negative prompt lies before it."""
    at = text.rfind("\nSteps:")
    assert at > -1
    line = text[at:].split("\n")[1]
    found = {}
    for setting in re.finditer(r'\s*([^:]+:\s*([^"\{].*?|".*?"|\{.*?\}))\s*(,|$)', line):
        name, _, value = setting[0].rstrip(", ").partition(":")
        found[name.strip().lower()] = value.strip()
    before = text.rfind("\nNegative prompt:", 0, at)
    assert before > -1
    return found | {"prompt": text[:before].strip(), "negative": text[before + 18 : at].strip()}


def test_the_lines_are_these() -> None:
    assert infotext(SETTINGS, (96, 64)) == LITERAL


@pytest.mark.parametrize(
    ("changes", "prompt", "negative"),
    [
        ({}, "a photo of ohwx dog", "blurry, grey"),
        ({"negative": ""}, "a photo of ohwx dog", ""),
        ({"negative": "rain"}, "a photo of ohwx dog", "rain"),
        ({"prompt": "a dog: old, grey\nSteps: 3"}, "a dog: old, grey Steps: 3", "blurry, grey"),
        ({"prompt": "ñandú の犬"}, "ñandú の犬", "blurry, grey"),
        ({"run": 'a, "b": c'}, "a photo of ohwx dog", "blurry, grey"),
    ],
)
def test_both_programs_find_what_was_meant(tmp_path, changes, prompt, negative) -> None:
    settings = SETTINGS | changes
    save_picture(tmp_path / "a.png", Image.new("RGB", (96, 64)), settings)
    with Image.open(tmp_path / "a.png") as image:
        text = image.text["parameters"]
        assert json.loads(image.text["dreambooth"]) == settings
    for found, lower in ((by_a1111(text), False), (by_comfyui(text), True)):
        assert found["prompt"] == prompt
        assert found["negative"] == negative
        wanted = {"Steps": "30", "Sampler": "DPM++ 2M Karras", "CFG scale": "7.5", "Seed": "4163",
                  "Size": "96x64"}  # fmt: skip
        for name, value in wanted.items():
            assert found[name.lower() if lower else name] == value
    assert by_a1111(text)["Model"] == settings["run"]


@pytest.mark.parametrize(("prompt", "chunk"), [("a café", b"tEXtparameters"),
                                               ("の犬", b"iTXtparameters")])  # fmt: skip
def test_a_plain_chunk_is_written_where_it_can_hold_the_text(tmp_path, prompt, chunk) -> None:
    settings = SETTINGS | {"prompt": prompt}
    save_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), settings)
    assert chunk in (tmp_path / "a.png").read_bytes()


def test_what_is_not_known_is_left_out() -> None:
    text = infotext({"prompt": "a dog", "seed": 3}, (64, 64))
    assert text == "a dog\nNegative prompt: \nSeed: 3, Size: 64x64"
    odd = infotext(SETTINGS | {"sampler": {"kind": "mine"}}, (8, 8)).split("\n")[2]
    assert odd.startswith("Sampler: mine, Seed: 4163")
