"""Text embeddings: kept where no text encoder trains, encoded with gradients where one does."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.interfaces import Conditioning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.nn import Module, Parameter

    from dreambooth.engine.cache.store import ChunkStore
    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.cost.residency import Residency
    from dreambooth.interfaces import Item, LoadedModel

    Stores = Mapping[tuple[str, ...], ChunkStore]
    """Entries of the store by the text encoders whose texts they hold."""

PROMPTS_A_FILE = 64
"""Prompts whose embeddings share a file of the store: bringing a file to disk takes as long as
encoding several prompts."""
HELD = 64 * 2**20
"""Bytes of texts that stay in memory; of more, those of a batch are read when it is made."""
SHAPE = ".shape"


def trains_text(model: LoadedModel, parameters: Mapping[str, Parameter]) -> bool:
    """Say whether anything in a text encoder learns."""
    parts = set(model.info.part_names("text_encoders"))
    return any(name.split(".", 1)[0] in parts for name in parameters)


def run_prompts(ctx: EngineContext, items: Sequence[Item]) -> list[str]:
    """Return every distinct prompt the run can meet, sorted."""
    job = ctx.job
    prompts = job.data.prompts(items, job.subject)
    if "reference" in job.loss.required():
        prompts += [job.loss.reference_prompt(p, job.subject) for p in prompts]
    prompts += job.prior.prompts(job.subject)
    if job.samples.every:
        prompts += [job.subject.fill(e.prompt) for e in job.samples.entries]
        prompts += [e.negative for e in job.samples.entries if e.negative is not None]
    price = job.prior.cost(job)
    drawing = [job.sampler] if job.samples.every else []
    if price.pictures or price.keeps_base:
        drawing.append(price.sampler or job.sampler)
    for sampler in drawing:
        prompts += sampler.extra_prompts()
    return sorted(set(prompts))


@torch.no_grad()
def encode_each(
    ctx: EngineContext, model: LoadedModel, prompts: Sequence[str]
) -> dict[str, Conditioning]:
    """Encode prompts with the weights as they are, each on its own: a text's embedding then
    depends on nothing but the text."""
    encoded = {}
    for prompt in prompts:
        with ctx.autocast():
            [encoded[prompt]] = model.encode_prompts([prompt])
    return encoded


class Kept(Conditioning):
    """A prompt's conditioning that lies in the store, read when it is asked for."""

    def __init__(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        object.__setattr__(self, "_read", read)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors, on the run's device."""
        return self._read()  # type: ignore[attr-defined, no-any-return]


class Shelf:
    """The texts that were read last, at most `HELD` bytes of them, in the encoders' types."""

    def __init__(self, ctx: EngineContext, model: LoadedModel, stores: Stores) -> None:
        self._device, self._model, self._stores = ctx.device, model, stores
        self._held: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def read(self, index: int) -> Mapping[str, Tensor]:
        """Return the tensors of prompt `index`, float32."""
        if index not in self._held:
            self._take(index)
        self._held.move_to_end(index)
        return {name: tensor.float() for name, tensor in self._held[index].items()}

    def _take(self, index: int) -> None:
        pieces = {
            parts[0]: Conditioning(unpack(store.reread(index)))
            for parts, store in self._stores.items()
        }
        one = len(pieces) == 1
        whole = next(iter(pieces.values())) if one else self._model.joined(pieces)
        tensors = {n: t.to(self._device, copy=True) for n, t in whole.tensors.items()}
        self._held[index] = tensors
        self._bytes += size_of(tensors)
        while self._bytes > HELD and len(self._held) > 1:
            self._bytes -= size_of(self._held.popitem(last=False)[1])


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def encode_first(
    ctx: EngineContext, model: LoadedModel, items: Sequence[Item], residency: Residency, draws: bool
) -> None:
    """Encode, while nothing else is in memory, what the run can meet or class images ask for.

    Where a text encoder trains that is the prompts of class images alone, if the prior `draws`
    any: the base's, which `settle` forgets again.
    """
    if residency.texts_first:
        keep(ctx, model, run_prompts(ctx, items), residency)
    elif draws:
        job = ctx.job
        wanted = {*job.prior.prompts(job.subject), *job.sampler.extra_prompts()}
        keep(ctx, model, sorted(wanted), residency)


def settle(
    ctx: EngineContext,
    model: LoadedModel,
    items: Sequence[Item],
    residency: Residency,
) -> None:
    """Fill the model's embeddings where texts are kept, or have them encoded in each forward."""
    if not residency.keeps_texts:
        model.text_is_frozen = False
        model.embeddings.clear()
        return
    prompts = run_prompts(ctx, items)
    if not model.embeddings.keys() >= {*prompts}:
        residency.enter("texts", model)
        keep(ctx, model, prompts, residency)
    if model.base is not None:
        model.base.embeddings |= model.embeddings


def keep(
    ctx: EngineContext, model: LoadedModel, prompts: Sequence[str], residency: Residency
) -> None:
    """Encode what the store lacks, one text encoder in memory after the other where it can be."""
    texts = model.info.part_names("text_encoders")
    groups = [(part,) for part in texts] if model.encodes_apart() else [texts]
    stores: dict[tuple[str, ...], ChunkStore] = {}
    for parts in groups:
        stores[parts] = store = _store(ctx, model, prompts, parts, alone=len(groups) > 1)
        store.ensure(len(prompts), "Encoding prompts")
        for part in parts:
            if part not in residency.parts.get("training", ()):
                model.release(part)
    shelf = Shelf(ctx, model, stores)
    for i, prompt in enumerate(prompts):
        model.embeddings[prompt] = Kept(partial(shelf.read, i))


def _store(
    ctx: EngineContext,
    model: LoadedModel,
    prompts: Sequence[str],
    parts: tuple[str, ...],
    *,
    alone: bool,
) -> ChunkStore:
    """Return the entry of what some text encoders make of prompts, in their own type."""

    @torch.no_grad()
    def build(indices: Sequence[int]) -> dict[str, Tensor]:
        rows = []
        for index in indices:
            with ctx.autocast():
                [found] = (
                    model.encode_part(parts[0], [prompts[index]])
                    if alone
                    else model.encode_prompts([prompts[index]])
                )
            rows.append(in_type(found.tensors, model.parts[parts[0]]))
        return pack(rows)

    key: dict[str, Any] = {
        "prompts": prompts,
        "encoders": [model.fingerprint(part) for part in parts],
        "precision": ctx.precision.name,
    }
    if alone:  # of a family of several, what one encoder gives is not the whole
        key["of"] = len(model.info.part_names("text_encoders"))
    if ctx.precision.name != "fp32":
        key["type"] = "the encoder's"
    return ctx.chunks("text", key, PROMPTS_A_FILE, build, total=len(prompts))


def in_type(tensors: Mapping[str, Tensor], encoder: Module) -> dict[str, Tensor]:
    """Return floating tensors in the type an encoder's weights have, where that is narrower."""
    wide = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    return {
        name: t.to(wide) if t.is_floating_point() and wide.itemsize < t.dtype.itemsize else t
        for name, t in tensors.items()
    }


def pack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put the same named tensors of several prompts together, dimension 0 being the prompt.

    Families that do not pad give each prompt a length of its own: those are filled up with zeros,
    and `<name>.shape` [prompts, dimensions] int64 says what of each is its own.
    """
    packed: dict[str, Tensor] = {}
    for name in rows[0]:
        tensors = [row[name] for row in rows]
        if len({t.shape for t in tensors}) == 1:
            packed[name] = torch.stack(tensors)
            continue
        room = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
        filled = tensors[0].new_zeros(len(rows), *room)
        for place, tensor in zip(filled, tensors, strict=True):
            place[tuple(map(slice, tensor.shape))] = tensor
        packed[name] = filled
        packed[name + SHAPE] = torch.tensor([t.shape for t in tensors])
    return packed


def unpack(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one prompt's tensors out of a row of what `pack` returned."""
    tensors = {}
    for name, tensor in row.items():
        if not name.endswith(SHAPE):
            own = row[name + SHAPE].tolist() if name + SHAPE in row else tensor.shape
            tensors[name] = tensor[tuple(map(slice, own))]
    return tensors
