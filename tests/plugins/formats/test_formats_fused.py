"""A family whose files have query, key and value in one: the model's own two methods do it all."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors import safe_open

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import AdapterTensors, LoadedModel
from dreambooth_plugins.exporter import Kohya
from dreambooth_plugins.freezing import Adapter
from dreambooth_plugins.model import StableDiffusion
from dreambooth_plugins.model.stable_diffusion_loaded import LoadedStableDiffusion
from learning import shake

ENDS = ("q", "k", "v")


class Fused(LoadedStableDiffusion):
    """Self-attention's projections are `attn1.to_qkv` in files: three updates side by side."""

    def adapter_file(self, layout, adapters):
        whole = {f"{a.part}.{a.module}": a for a in adapters}
        joined, rest = {}, []
        for name, adapter in whole.items():
            match = re.fullmatch(r"(unet\..*attn1\.)to_([qkv])", name)
            if match is None:
                rest.append(adapter)
            else:
                joined.setdefault(match[1], {})[match[2]] = adapter.tensors
        tensors = super().adapter_file(layout, rest)
        for stem, found in joined.items():
            at = f"lora_{stem}to_qkv".replace(".", "_")
            tensors[f"{at}.lora_down.weight"] = torch.cat([found[e]["down"] for e in ENDS])
            tensors[f"{at}.lora_up.weight"] = torch.block_diag(*(found[e]["up"] for e in ENDS))
            tensors[f"{at}.alpha"] = 3 * found["q"]["alpha"]
        return tensors

    def read_adapter(self, tensors):
        modules = {
            f"lora_{name}to_qkv".replace(".", "_"): name.removeprefix("unet.")
            for name in {n[: -len("to_q")] for n in self.adapter_keys("kohya") if "attn1.to_q" in n}
        }
        fused = {n for n in tensors if n.split(".", 1)[0] in modules}
        found = super().read_adapter({n: tensors[n] for n in tensors if n not in fused})
        for at, stem in modules.items():
            if f"{at}.lora_down.weight" not in fused:
                continue
            downs = tensors[f"{at}.lora_down.weight"].chunk(3)
            rows = tensors[f"{at}.lora_up.weight"].chunk(3)
            rank, alpha = downs[0].shape[0], tensors[f"{at}.alpha"] / 3
            for i, end in enumerate(ENDS):
                up = rows[i][:, i * rank : (i + 1) * rank]
                own = {"down": downs[i], "up": up, "alpha": alpha}
                found.append(AdapterTensors("unet", f"{stem}to_{end}", own))
        return found


@pytest.fixture
def fused(monkeypatch, ctx):
    def loaded(self, info, source, inside):
        return Fused(info, source, inside)

    monkeypatch.setattr(StableDiffusion, "loaded", loaded)
    return StableDiffusion(source="builtin:tiny")


def test_a_fused_layout_is_written_and_gone_on_with(fused, ctx, small_job, tmp_path):
    ctx.job = small_job()
    model, policy = fused.open(ctx), Adapter(train=["unet", "text_encoder"])
    policy.prepare(model, ctx)
    parameters = policy.trainable(model)
    shake(parameters)
    artifact = policy.artifact(model, {n: p.detach() for n, p in parameters.items()})
    dest = tmp_path / "out"
    dest.mkdir()
    Kohya().write(artifact, model, dest, ctx, model.info.schedule)
    [file] = dest.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        names = {name.split(".", 1)[0] for name in opened.keys()}
    assert any(name.endswith("attn1_to_qkv") for name in names)
    assert not any(name.endswith("attn1_to_q") for name in names)
    assert any(name.endswith("attn2_to_q") for name in names)
    again = fused.open(ctx)
    back = Adapter(train=["unet", "text_encoder"], init=file)
    back.prepare(again, ctx)
    found = back.trainable(again)
    assert found.keys() == parameters.keys()
    for name, tensor in parameters.items():
        torch.testing.assert_close(found[name].detach(), tensor.detach(), rtol=0, atol=0)


def test_a_fused_file_of_another_size_is_told_by_its_module(fused, ctx, small_job, tmp_path):
    from safetensors.torch import save_file

    ctx.job = small_job()
    at = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_qkv"
    tensors = {
        f"{at}.lora_down.weight": torch.ones(6, 48),
        f"{at}.lora_up.weight": torch.ones(144, 6),
        f"{at}.alpha": torch.tensor(6.0),
    }
    save_file(tensors, tmp_path / "other.safetensors")
    policy = Adapter(train=["unet"], init=tmp_path / "other.safetensors")
    with pytest.raises(JobError, match=r"attn1\.to_q takes \[64, 64\], the file has \[48, 2\]"):
        policy.prepare(fused.open(ctx), ctx)


def test_a_family_without_a_layout_says_what_to_do(tiny_model, ctx):
    model = StableDiffusion(source=str(tiny_model)).open(ctx)
    for method, given in (("adapter_file", ("kohya", [])), ("read_adapter", ({},))):
        with pytest.raises(RunError) as told:
            getattr(LoadedModel, method)(model, *given)
        assert "merged" in told.value.hint
