"""Where the networks are trained: the processor, or a card that replays whole steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from emoji_recipe.settings import RecipeSettings

WARM_UPS = 3
"""Steps that run as usual before one is captured: libraries choose their kernels in them."""


def pick_precision(settings: RecipeSettings) -> torch.dtype:
    """Return the autocast type: what is asked for, or bf16 where the device multiplies it.

    Without such units bf16 is many times slower on a CPU. A function of the machine, not of a
    measurement; a work folder that moves to another kind of processor goes on in its type.
    """
    if settings.precision != "auto":
        return torch.float32 if settings.precision == "fp32" else torch.bfloat16
    if settings.device == "cuda":
        return torch.bfloat16
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if units else torch.float32


def autocast(settings: RecipeSettings) -> torch.autocast:
    """Return a context in which the networks multiply in the recipe's precision."""
    dtype = pick_precision(settings)
    return torch.autocast(settings.device, torch.bfloat16, enabled=dtype == torch.bfloat16)


def device_of(module: torch.nn.Module) -> torch.device:
    """Return the device a network lies on."""
    return next(module.parameters()).device


class Replayed:
    """A training step of fixed shapes, captured once and replayed by the card.

    Networks this small leave a card waiting for the next kernel's name; a captured step (a CUDA
    graph) is launched as one. What changes between steps lies in tensors: rows are copied into the
    captured ones, rates are tensors that the optimisers read (`optim.build`). Rows of another
    shape get a capture of their own.
    """

    def __init__(
        self, update: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], forget: Callable[[], Any]
    ) -> None:
        """Keep `update`, a whole step over rows on the card, and what drops the gradients."""
        self.update, self.forget = update, forget
        self._taken: dict[Any, int] = {}
        self._captured: dict[Any, tuple[Any, dict[str, Tensor], dict[str, Tensor]]] = {}
        self._side = torch.cuda.Stream()

    def __call__(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take one step; `rows` lie in pinned host memory. Return its scalars, on the card."""
        shapes = tuple((name, value.shape) for name, value in sorted(rows.items()))
        if shapes in self._captured:
            graph, held, scalars = self._captured[shapes]
            for name, value in rows.items():
                held[name].copy_(value, non_blocking=True)
            graph.replay()
            return scalars
        there = {name: value.to("cuda", non_blocking=True) for name, value in rows.items()}
        if self._taken.setdefault(shapes, 0) < WARM_UPS:
            self._taken[shapes] += 1
            return self._warm_up(there)
        graph = torch.cuda.CUDAGraph()
        self.forget()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                scalars = self.update(there)
        except RuntimeError as error:  # an operator that waits for the host
            print(f"steps are not captured: {error}", flush=True)
            self._taken[shapes] = -(10**9)
            return self._warm_up(there)
        self._captured[shapes] = (graph, there, scalars)
        graph.replay()
        return scalars

    def _warm_up(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self.forget()
            scalars = self.update(rows)
        torch.cuda.current_stream().wait_stream(self._side)
        return scalars
