"""How a picture was drawn, in the lines that AUTOMATIC1111, Forge and ComfyUI read from a PNG."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "parameters"
"""The PNG's chunk of text that they look for."""
_SAMPLERS = {
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "unipc": "UniPC",
    "euler": "Euler",
    "euler_a": "Euler a",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "ddpm": "DDPM",
}
"""Names of solvers there; the schedule of sigmas is part of the name, which all versions read."""


def infotext(settings: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return prompt, negative prompt and one line of settings that begins with the steps.

    `settings` are those of `save_picture`, `size` is (width, height). ComfyUI finds the three by
    `Negative prompt:` and `Steps:` at the beginning of a line, so neither may lack; A1111 takes a
    last line of three settings and more, values with a comma or a colon in quotes.
    """
    sampler = settings.get("sampler")
    options = sampler if isinstance(sampler, dict) else {}
    solver = str(options.get("solver", options.get("kind", "")))
    negative = settings.get("negative", options.get("negative", ""))
    line = {
        "Steps": options.get("steps", ""),
        "Sampler": _SAMPLERS.get(solver, solver),
        "CFG scale": _number(options.get("guidance_scale", "")),
        "Seed": settings.get("seed", ""),
        "Size": f"{size[0]}x{size[1]}",
        "Model": settings.get("run", ""),
        "Training step": settings.get("step", ""),
    }
    if not options:
        del line["Steps"], line["Sampler"], line["CFG scale"]
    told = ", ".join(f"{name}: {_value(value)}" for name, value in line.items() if value != "")
    return (
        f"{_one_line(settings.get('prompt', ''))}\nNegative prompt: {_one_line(negative)}\n{told}"
    )


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _number(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _value(value: Any) -> str:
    text = _one_line(value)
    return json.dumps(text, ensure_ascii=False) if {",", ":", '"'} & {*text} else text
