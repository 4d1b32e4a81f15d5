"""How much memory autograd keeps between forward and backward, counted without computing."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from dreambooth.engine.geometry import plain_geometry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.interfaces import LoadedModel
    from dreambooth.job import Job


class _Attention(torch.autograd.Function):
    """Attention as fused kernels save it: query, key, value, output and one number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("only counted, never run backward")


class FusedAttention(TorchFunctionMode):
    """On `meta` tensors torch would take the unfused path, which also keeps all probabilities."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace scaled dot-product attention; leave every other call alone."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


def activation_bytes(
    job: Job, model: LoadedModel, trainable: dict[str, Parameter], rows: int
) -> int:
    """Count the float32 bytes autograd keeps from one forward, by running it on `meta` tensors."""
    wanted = {id(p) for p in trainable.values()}
    parts = sorted({name.split(".", 1)[0] for name in trainable})
    for part in model.info.parts:
        for p in model.parts[part].parameters():
            p.requires_grad_(id(p) in wanted)
    if job.train.gradient_checkpointing:
        passed = {*parts, *model.info.part_names("denoiser")}
        model.enable_gradient_checkpointing(sorted(passed))
        for part in parts:
            model.parts[part].train()
    weights = {
        p.untyped_storage()._cdata
        for part in model.info.parts
        for p in model.parts[part].parameters()
    }
    saved: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Views of one storage are kept once; keeping the tensor keeps the address unique.
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    latent = model.info.latent
    height, width = (side // latent.factor for side in job.data.size)
    z = torch.empty(rows, latent.channels, height, width, device="meta")
    t = torch.zeros(rows, dtype=torch.int64, device="meta")
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        FusedAttention(),
    ):
        encoded = model.encode_prompts([job.subject.fill("{identifier} {class_noun}")] * rows)
        geometry = [plain_geometry(job.data.size)] * rows
        cond = model.condition(model.collate(encoded), geometry)
        out = model.denoise(z, t, cond)
    return sum(size for _, size in saved.values()) + prod(out.shape) * 4
