"""LoRA files as other tools write them: literal names, random factors, deltas by the formula."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEYS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PROJ = "mid_block.attentions.0.proj_in"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"
K_UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K_KEYS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
K_PROJ = "lora_unet_mid_block_attentions_0_proj_in"
K_CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
K_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
K_TEXT1 = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
BUNDLED = "bundle_emb.ohwx.string_to_param.*"


class File:
    """One file in the making, and the deltas it stands for."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights, self.random = weights, torch.Generator().manual_seed(1)
        self.tensors: dict[str, torch.Tensor] = {}
        self.deltas: dict[str, torch.Tensor] = {}
        self.config: dict[str, object] | None = None

    def draw(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors[name] = torch.randn(shape, generator=self.random).mul_(0.3).half().float()
        return self.tensors[name]

    def lora(self, module, down, up, rank=4, alpha=None, scale=None, kernel=None, squeezed=False):
        """up @ down times alpha / rank; a convolution's `down` has its kernel."""
        weight = self.weights[module]
        kernel = weight.shape[2:] if kernel is None else kernel
        a = self.draw(down, rank, weight.shape[1], *kernel)
        b = self.draw(up, weight.shape[0], rank, *((1, 1) if kernel else ()))
        if alpha is not None:
            self.tensors[down.split(".lora")[0] + ".alpha"] = torch.tensor(float(alpha))
            scale = alpha / rank
        delta = torch.einsum("or,r...->o...", b.reshape(-1, rank), a) * (scale or 1.0)
        self.deltas[module] = delta.reshape(weight.shape)
        return self

    def dora(self, module, down, up, name, shape):
        """m (W + delta) / |W + delta|, less W; m an output."""
        self.lora(module, down, up)
        weight, out = self.weights[module], self.weights[module].shape[0]
        sides = {"[out]": (out,), "[out, 1]": (out, 1), "[out, 1, 1, 1]": (out, 1, 1, 1),
                 "[1, out, 1, 1]": (1, out, 1, 1)}[shape]  # fmt: skip
        m = self.draw(name, *sides).abs_().add_(0.5)
        whole = weight + self.deltas[module]
        per_out = (-1, *[1] * (whole.dim() - 1))
        norm = whole.flatten(1).norm(dim=1).view(per_out)
        self.deltas[module] = m.view(per_out) * whole / norm - weight
        return self

    def tucker(self, module, at, rank=3, alpha=6.0):
        out, into, *kernel = self.weights[module].shape
        a = self.draw(f"{at}.lora_down.weight", rank, into, 1, 1)
        core = self.draw(f"{at}.lora_mid.weight", rank, rank, *kernel)
        b = self.draw(f"{at}.lora_up.weight", out, rank, 1, 1)
        self.tensors[f"{at}.alpha"] = torch.tensor(alpha)
        a, b = a[:, :, 0, 0], b[:, :, 0, 0]
        self.deltas[module] = alpha / rank * torch.einsum("om,mnkl,ni->oikl", b, core, a)
        return self

    def loha(self, module, at, rank=3, alpha=1.5, tucker=False, scale=None):
        out, into, *kernel = self.weights[module].shape
        deltas = []
        for i in (1, 2):
            if tucker:
                core = self.draw(f"{at}.hada_t{i}", rank, rank, *kernel)
                a = self.draw(f"{at}.hada_w{i}_a", rank, out)
                b = self.draw(f"{at}.hada_w{i}_b", rank, into)
                deltas.append(torch.einsum("mo,mnkl,ni->oikl", a, core, b))
            else:
                size = into * torch.Size(kernel).numel()
                a = self.draw(f"{at}.hada_w{i}_a", out, rank)
                deltas.append(a @ self.draw(f"{at}.hada_w{i}_b", rank, size))
        if alpha is not None:
            self.tensors[f"{at}.alpha"] = torch.tensor(alpha)
            scale = alpha / rank
        self.deltas[module] = (deltas[0] * deltas[1] * scale).reshape(self.weights[module].shape)
        return self

    def lokr(self, module, at, whole=(True, False), factor=4, rank=2, alpha=3.0, tucker=False,
             scale=None):  # fmt: skip
        """kron(w1, w2); each factor whole or in two; two whole ones have no rank to divide by."""
        out, into, *kernel = self.weights[module].shape
        sides = (factor, factor), (out // factor, into // factor)
        parts = []
        for i in (1, 2):
            (rows, columns), over = sides[i - 1], tuple(kernel) if i == 2 else ()
            if whole[i - 1]:
                parts.append(self.draw(f"{at}.lokr_w{i}", rows, columns, *over))
            elif tucker and i == 2:
                core = self.draw(f"{at}.lokr_t2", rank, rank, *over)
                a, b = (self.draw(f"{at}.lokr_w2_{x}", rank, n)
                        for x, n in (("a", rows), ("b", columns)))  # fmt: skip
                parts.append(torch.einsum("mo,mnkl,ni->oikl", a, core, b))
            else:
                a = self.draw(f"{at}.lokr_w{i}_a", rows, rank)
                b = self.draw(f"{at}.lokr_w{i}_b", rank, columns * torch.Size(over).numel())
                parts.append((a @ b).reshape(rows, columns, *over))
        if alpha is not None:
            self.tensors[f"{at}.alpha"] = torch.tensor(alpha)
        scale = scale or (1.0 if all(whole) else alpha / rank)
        left = parts[0].reshape(*sides[0], *[1] * (parts[1].dim() - 2))
        self.deltas[module] = torch.kron(left, parts[1].contiguous()) * scale
        return self

    def save(self, path, dtype=torch.float32, metadata=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: t.to(dtype).contiguous() for n, t in self.tensors.items()}, path, metadata)
        if self.config is not None:
            (path.parent / "adapter_config.json").write_text(json.dumps(self.config))
        return path
