"""The most memory a computation holds at once, counted on `meta` tensors without computing."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

HALF = frozenset({torch.bfloat16, torch.float16})
F = torch.nn.functional
LOWERED: frozenset[Any] = frozenset(
    {
        F.linear,
        F.conv2d,
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.bmm,
        torch.addmm,
        torch.baddbmm,
        F.scaled_dot_product_attention,
    }
)
"""What autocast runs in half precision, of what diffusion models call."""
RAISED: frozenset[Any] = frozenset({F.group_norm, F.layer_norm, F.softmax, torch.softmax})
"""What autocast on CUDA runs in float32, of these; on CPUs it leaves them as they are."""


class Live(TorchDispatchMode):
    """Adds up the storages that are made within it, as they come and go.

    `outside` are tensors that were there before (weights): neither they nor their views count.
    `peak` is the most bytes at one time.
    """

    def __init__(self, outside: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in outside}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """Attention as fused kernels do it: no probabilities, one number a query is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class AsComputed(TorchFunctionMode):
    """Makes `meta` tensors take the ways of a device: fused attention, autocast to `dtype`.

    Neither is there for `meta`. Without autocast `dtype` is float32. With `blocked` convolutions
    take what oneDNN takes for them on CPUs: copies of input, weight and output in its own layout,
    for as long as the convolution lasts. Where pictures are decoded that is half as much again.
    """

    def __init__(self, dtype: torch.dtype, device: str = "cpu", *, blocked: bool = False) -> None:
        super().__init__()
        self._blocked = blocked
        self._dtype, self._raises = dtype, device == "cuda" and dtype in HALF
        self._casts: dict[int, Tensor] | None = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast, where autocast would, and replace scaled dot-product attention."""
        named = kwargs or {}
        if func in LOWERED and self._dtype in HALF:
            args = tuple(self._lowered(value) for value in args)
            named = {name: self._lowered(value) for name, value in named.items()}
        elif func in RAISED and self._raises:
            args = tuple(_raised(value) for value in args)
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | named
            return _Attention.apply(given["query"], given["key"], given["value"])
        if func is F.conv2d and self._blocked:
            given = dict(zip(("input", "weight"), args, strict=False)) | named
            copies = [torch.empty_like(given[name]) for name in ("input", "weight")]
            out = func(*args, **named)
            copies.append(torch.empty_like(out))
            return out
        return func(*args, **named)

    def leave(self) -> None:
        """Forget the casts, as autocast does where its block ends."""
        self._casts = {}

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the scalar `loss` within this mode.

        By the engine itself: torch's own functions around it switch the mode off, and
        checkpointing would recompute without it.
        """
        self._casts = None  # each checkpoint's block is as short as itself
        engine: Any = torch.autograd.Variable._execution_engine
        options = {"allow_unreachable": True, "accumulate_grad": True}
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), **options)
        self.leave()

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
            return value
        # Weights that train are cast once a block.
        if self._casts is None or not (value.is_leaf and value.requires_grad):
            return value.to(self._dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self._dtype)
        return self._casts[id(value)]


def _raised(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in HALF
    return value.float() if half else value


def peak(compute: Callable[[], object], outside: Iterable[Tensor] = ()) -> int:
    """Return the most bytes `compute` holds at once beyond `outside`."""
    live = Live(outside)
    with live:
        compute()
    return live.peak
