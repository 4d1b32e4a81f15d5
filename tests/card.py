"""A card that is not there: tensors that say they lie on a device, computed on the CPU.

`Card()` runs a block as if a card took part. Every operator that would make the host wait for a
real one is kept in `waits`, with the line of ours it came from; copies to the card that wait for
nothing (pinned and `non_blocking`) are counted in `uploads`. What only a card refuses, such as
operands on two devices, is refused here too.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from dataclasses import replace

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dreambooth.engine.data import text
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.session import open_state
from dreambooth.engine.stages import Stages
from dreambooth.interfaces import Conditioning

CARD = torch.device("meta")
"""A device that every build of torch knows and that needs no driver."""
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
SIZED_BY_VALUES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_dim.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default}  # fmt: skip
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}


class OnCard(torch.Tensor):
    """A tensor whose numbers lie on the card; `held` has them."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=CARD,
        )  # fmt: skip

    def __init__(self, held):
        self.held = held.detach()

    def __repr__(self):
        return f"OnCard({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})  # outside of a `Card`, where tests look at results


def run(func, args, kwargs, made_on_card=False):
    """Run an operator on what the tensors hold; what comes out lies where they do."""
    given, _ = tree_flatten((args, kwargs))
    wrappers = {id(x.held): x for x in given if isinstance(x, OnCard)}
    held = tree_map(lambda x: x.held if isinstance(x, OnCard) else x, (args, kwargs))
    out = func(*held[0], **held[1])
    if not wrappers and not made_on_card:
        return out
    # An operator in place gives back the tensor it was given.
    return tree_map(
        lambda x: wrappers.get(id(x), OnCard(x)) if isinstance(x, torch.Tensor) else x, out
    )


class Card(TorchDispatchMode):
    """Runs a block as if a card took part, and counts what would wait for it."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.uploads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        on_card = [x for x in flat if isinstance(x, OnCard)]
        on_host = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnCard)]
        if func is aten._pin_memory.default:
            pinned = aten.clone.default(args[0])
            pinned.is_for_the_card = True
            return pinned
        if func in COPIES:
            return self._copy(func, args, kwargs)
        self._watch(func, args, bool(on_card), on_host)
        target = kwargs.get("device")
        to_card = target is not None and torch.device(target).type == CARD.type
        if to_card or target is not None:
            kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        return run(func, args, kwargs, made_on_card=to_card)

    def _watch(self, func, args, on_card, on_host):
        if not on_card:
            return
        if func in READS | SIZED_BY_VALUES:
            self._wait(func)
        elif func in INDEXING:
            at = [x for x in args[1] if x is not None]
            if any(x.dtype in {torch.bool, torch.uint8} for x in at):
                self._wait(func)
            if any(not isinstance(x, OnCard) for x in at):
                self._wait(func, "indices on the host")
        elif strange := [x for x in on_host if x.dim()]:
            raise AssertionError(f"{func}: {strange[0].shape} lies on the host, others do not")

    def _copy(self, func, args, kwargs):
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            to_card, blocking = isinstance(args[0], OnCard), not (args[2:] or [False])[0]
        else:
            target = kwargs.get("device")
            stays = isinstance(source, OnCard)
            to_card = stays if target is None else torch.device(target).type == CARD.type
            blocking = not kwargs.get("non_blocking")
            kwargs = {k: v for k, v in kwargs.items() if k not in {"device", "non_blocking"}}
        if isinstance(source, OnCard) and not to_card:
            self._wait(func, "card to host")
            plain = tree_map(lambda x: x.held if isinstance(x, OnCard) else x, args)
            return func(*plain, **kwargs)
        if to_card and not isinstance(source, OnCard) and not self._is_scalar_fill(func, source):
            if getattr(source, "is_for_the_card", False) and not blocking:
                self.uploads += 1
            else:
                self._wait(func, "host to card, not pinned")
        return run(func, args, kwargs, made_on_card=to_card)

    @staticmethod
    def _is_scalar_fill(func, source):
        return func is aten.copy_.default and source.dim() == 0  # passed by value

    def _wait(self, func, why=""):
        ours = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if "dreambooth" in frame.filename or "site-packages" in frame.filename
            if "torch/" not in frame.filename
        ]
        self.waits[f"{func} {why} at {' < '.join(reversed(ours[-2:]))}"] += 1


class Autocast(TorchFunctionMode):
    """What autocast does to the operators that matter; there is none for a card without a name."""

    MATMULS = frozenset(
        {
            functional.linear, functional.conv2d, torch.matmul, torch.bmm, torch.baddbmm,
            torch.Tensor.matmul, torch.Tensor.__matmul__, functional.scaled_dot_product_attention,
        }
    )  # fmt: skip

    def __init__(self, dtype):
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.MATMULS:
            args, kwargs = tree_map(self._cast, (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, x):
        return x.to(self._dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


class OnCardPrecision(Precision):
    """A precision on the card."""

    def autocast(self):
        return contextlib.nullcontext() if self.name == "fp32" else Autocast(self.dtype)


def move_to_card(s):
    """Move an opened session, not yet trained, to the card; returns it."""
    model = s.model
    for one in filter(None, (model, model.base)):
        for part in one.loaded():
            one.parts[part]._apply(OnCard)
        one.embeddings = {
            prompt: Conditioning({k: OnCard(v) for k, v in cond.tensors.items()})
            for prompt, cond in one.embeddings.items()
        }
    ctx = s.ctx
    ctx.device = CARD
    ctx.devices = replace(ctx.devices, device=CARD)
    ctx.precision = OnCardPrecision(ctx.precision.name, CARD)
    parameters = dict(s.job.freezing.trainable(model))
    s.state = open_state(ctx, parameters)
    s.stages = Stages(ctx, model, parameters, text.run_prompts(ctx, s.scan.items))
    s.state.while_showing = s.stages.without_kept_texts
    return s
