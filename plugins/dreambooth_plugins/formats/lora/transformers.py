"""Names of adapter files for models with a transformer, in every layout: written and read.

`diffusers`: `transformer.<module>.lora_A.weight`. `comfyui`: `diffusion_model.<module>`, by the
names of the model's makers. `kohya`: `lora_unet_<module>`, the same names with underscores for
dots, and an alpha a module.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from dreambooth.errors import RunError
from dreambooth.interfaces import AdapterTensors
from dreambooth_plugins.formats.lora import diffusers, kohya
from dreambooth_plugins.formats.lora.low_rank import FACTORS, MAGNITUDE
from dreambooth_plugins.formats.lora.native import Place, fused, places, unfused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth_plugins.formats.lora.native import Rules

COMFYUI = "comfyui"
DENOISER = "transformer"
CLIPS = {"text_encoder": ("lora_te1", "clip_l"), "text_encoder_2": ("lora_te2", "clip_g")}
"""What kohya's scripts and ComfyUI call the CLIP encoders."""
_NAME = re.compile(
    r"^(?P<module>.+?)(\.lora_linear_layer|\.lora|_lora)?"
    rf"\.(?P<role>lora_(?:A|B|down|up|mid)|down|up|alpha|dora_scale|{MAGNITUDE}|{FACTORS})"
    r"(\.(?!weight$)[^.]+)?(\.weight)?$"
)
_ROLES = {
    "lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid",
    MAGNITUDE: "magnitude", "dora_scale": "magnitude",
}  # fmt: skip


class TransformerNames:
    """What each layout calls the layers of a model's parts.

    `layers` are the outputs of every layer that may take an adapter, by part and name in memory,
    and `files` its name in diffusers' files; `native` what the model's makers call the
    transformer's, empty where they are diffusers' names.
    """

    def __init__(
        self,
        layers: Mapping[str, Mapping[str, int]],
        files: Mapping[str, Mapping[str, str]],
        native: Rules,
        swapped: Sequence[str] = (),
    ) -> None:
        self._files, self._layers = files, layers
        known = self._layers[DENOISER]
        plain = {name: Place(name) for name in known}
        self._places = places(native, known, swapped) if native else plain

    def keys(self, layout: str) -> dict[str, str]:
        """Map qualified names to those of a layout; `KeyError` for one that is not known."""
        if layout not in (diffusers.LAYOUT, COMFYUI, kohya.LAYOUT):
            raise KeyError(layout)
        return {
            f"{part}.{name}": named
            for part, found in self._layers.items()
            for name in found
            if (named := self._named(layout, part, name)) is not None
        }

    def _named(self, layout: str, part: str, name: str) -> str | None:
        in_files = self._files[part][name]
        if layout == diffusers.LAYOUT:
            return f"{part}.{in_files}"
        if part == DENOISER:
            place = self._places.get(name)
            return None if place is None else _denoiser(layout, place.module)
        numbered, comfy = CLIPS[part]
        if layout == COMFYUI:
            return f"text_encoders.{comfy}.transformer.{in_files}"
        return f"{numbered}_{in_files.replace('.', '_')}"

    def file_tensors(self, layout: str, adapters: Sequence[AdapterTensors]) -> dict[str, Tensor]:
        """Return the tensors of a file; `RunError` for layers the layout has no place for."""
        names = self.keys(layout)
        if layout == diffusers.LAYOUT:
            return diffusers.file_tensors(names, adapters, (DENOISER,))
        lost = [f"{a.part}.{a.module}" for a in adapters if f"{a.part}.{a.module}" not in names]
        if lost:
            raise RunError(
                f"{layout} has no name for {len(lost)} adapted layers, e.g. {lost[0]}",
                "export the adapter as lora or merged",
            )
        ours = [a for a in adapters if a.part == DENOISER]
        found = fused(self._places, ours, self._layers[DENOISER])
        rest = {names[f"{a.part}.{a.module}"]: a.tensors for a in adapters if a.part != DENOISER}
        modules = {_denoiser(layout, name): tensors for name, tensors in found.items()} | rest
        return with_roles(layout, modules)

    def read(self, tensors: Mapping[str, Tensor]) -> list[AdapterTensors]:
        """Sort a file's tensors by module and role, whatever its layout is.

        A module that is not known is returned as the file names it; tensors that are no adapter's
        are left out.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for name in tensors:
            if (match := _NAME.match(name)) is not None:
                module = match["module"].removeprefix("base_model.model.")
                role = _ROLES.get(match["role"], match["role"])
                found.setdefault(module, {})[role] = tensors[name]
        out: list[AdapterTensors] = []
        for module, roles in found.items():
            if module in self._direct:
                out.append(AdapterTensors(*self._direct[module], roles))
            elif (native := self._native.get(module)) is not None:
                pieces = unfused(self._places, native, roles, self._layers[DENOISER])
                out += [AdapterTensors(DENOISER, name, each) for name, each in pieces.items()]
            else:
                out.append(AdapterTensors(DENOISER, module, roles))
        return out

    @cached_property
    def _direct(self) -> dict[str, tuple[str, str]]:
        """Part and name in memory, by the names files have for a layer alone."""
        found: dict[str, tuple[str, str]] = {}
        for part, names in self._layers.items():
            for name in names:
                file = self._files[part][name]
                known = {f"{part}.{name}", f"{part}.{file}"}
                if part == DENOISER:
                    dashed = name.replace(".", "_")
                    known |= {name, f"diffusion_model.{name}", f"lora_transformer_{dashed}"}
                    known |= {f"lora_unet_{dashed}"}
                else:
                    known |= {str(self._named(x, part, name)) for x in (COMFYUI, kohya.LAYOUT)}
                    known |= (
                        {f"lora_te_{file.replace('.', '_')}"} if part == "text_encoder" else set()
                    )
                found |= dict.fromkeys(known, (part, name))
        return found

    @cached_property
    def _native(self) -> dict[str, str]:
        """The makers' name of a module, by the names files have for it."""
        modules = {place.module for place in self._places.values()}
        return {
            named: module
            for module in modules
            for named in (module, _denoiser(COMFYUI, module), _denoiser(kohya.LAYOUT, module))
        }


def _denoiser(layout: str, module: str) -> str:
    if layout == COMFYUI:
        return f"diffusion_model.{module}"
    return f"lora_unet_{module.replace('.', '_')}"


def with_roles(layout: str, modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of modules under a layout's names.

    `comfyui` has no alpha: it is multiplied into `up`, since not every reader of these names looks
    for one.
    """
    down, up = ("lora_A", "lora_B") if layout == COMFYUI else ("lora_down", "lora_up")
    if layout == COMFYUI:
        modules = {module: _folded(tensors) for module, tensors in modules.items()}
    called = {
        "down": f"{down}.weight", "up": f"{up}.weight", "mid": "lora_mid.weight",
        "magnitude": "dora_scale",
    }  # fmt: skip
    return {
        f"{module}.{called.get(role, role)}": tensor
        for module, tensors in modules.items()
        for role, tensor in tensors.items()
    }


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rest = {role: tensor for role, tensor in tensors.items() if role != "alpha"}
    if "alpha" in tensors:
        rest["up"] = rest["up"] * (tensors["alpha"] / len(rest["down"]))
    return rest
