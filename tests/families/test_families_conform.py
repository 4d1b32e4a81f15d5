"""The families that come with the trainer pass the suite of one; faults of each kind are seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dreambooth.interfaces import Conditioning
from dreambooth.testing import FamilyConformance, Trainer
from dreambooth_plugins.model import SDXL, StableDiffusion
from dreambooth_plugins.model.sdxl_loaded import LoadedSDXL

PLUGINS = Path(__file__).parents[2] / "plugins" / "dreambooth_plugins"
CORE = Path(__file__).parents[2] / "src" / "dreambooth"


class TestStableDiffusion(FamilyConformance):
    component: ClassVar = StableDiffusion(source="builtin:tiny")


class TestStableDiffusion2(FamilyConformance):
    component: ClassVar = StableDiffusion(source="builtin:tiny-sd2")


class TestSDXL(FamilyConformance):
    component: ClassVar = SDXL(source="builtin:tiny-sdxl")


def swapped(self, cond, rows):
    ids = [[*r.crop_top_left, *r.original_size, *r.target_size] for r in rows]
    return Conditioning({**cond.tensors, "time_ids": torch.tensor(ids, dtype=torch.float32)})


def last_layer(self, part, prompts):
    rows, _ = self.read_prompts(part, prompts)
    found = self.parts[part](rows, output_hidden_states=True)
    return found.hidden_states[-1], found[0]


def negated(self, z_t, t, cond):
    added = {"text_embeds": cond.tensors["pooled"], "time_ids": cond.tensors["time_ids"]}
    return -self.predict(z_t, t, cond, {"added_cond_kwargs": added})


def unpooled(self, z_t, t, cond):
    added = {"text_embeds": cond.tensors["pooled"] * 0, "time_ids": cond.tensors["time_ids"]}
    return self.predict(z_t, t, cond, {"added_cond_kwargs": added})


@pytest.mark.parametrize(
    ("method", "fault", "said"),
    [
        ("condition", swapped, "time_ids differs"),
        ("_hidden", last_layer, "embeds differs"),
        ("denoise", negated, "a sign, a unit of time"),
        ("denoise", unpooled, "a sign, a unit of time"),
    ],
)
def test_a_fault_of_the_family_is_seen(monkeypatch, tmp_path, method, fault, said):
    monkeypatch.setattr(LoadedSDXL, method, fault)
    suite = FamilyConformance()
    with pytest.raises(AssertionError, match=said):
        suite.test_it_predicts_what_diffusers_predicts(
            SDXL(source="builtin:tiny-sdxl"), Trainer(tmp_path)
        )


NAMES = re.compile(
    r"""["'](unet|text_encoder|text_encoder_2|vae|transformer)["']"""
    r"|Pipeline\b(?!\s*=)|\.(unet|text_encoder|tokenizer)\b"
)
ALLOWED = {
    "freezing/per_part.py": "the default of adapters: `train: [unet]`",
    "prior/class_folder.py": "a role",
    "component/model_info.py": "the roles",
    "engine/cost/residency.py": "the roles",
}


def test_nothing_outside_of_families_and_formats_names_one():
    """A part, a pipeline's class: another family would have others. Roles are for all."""
    roles = re.compile(r'part_names\([^)]*\)|roles\.get\([^)]*\)|random\("vae"')
    found = []
    for root in (PLUGINS, CORE):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if name.split("/")[0] in ("model", "formats", "base_emoji") or name in ALLOWED:
                continue
            code = re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text(encoding="utf-8"))
            found += [f"{name}: {m.group()}" for m in NAMES.finditer(roles.sub("", code))]
    assert not found
