"""Text embeddings: kept where no text encoder trains, encoded with gradients where one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreambooth.interfaces import Conditioning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.cost.residency import Residency
    from dreambooth.interfaces import Item, LoadedModel


PROMPTS_A_FILE = 64
"""Prompts whose embeddings share a file of the store: bringing a file to disk takes as long as
encoding several prompts."""
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
    if job.samples.every:
        prompts += job.sampler.extra_prompts()
    if price.keeps_base:  # it draws while training
        prompts += (price.sampler or job.sampler).extra_prompts()
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
    parts = model.info.part_names("text_encoders")

    def build(indices: Sequence[int]) -> dict[str, Tensor]:
        encoded = encode_each(ctx, model, [prompts[i] for i in indices])
        return pack([encoded[prompts[i]].tensors for i in indices])

    key = {
        "prompts": prompts,
        "encoders": [model.fingerprint(part) for part in parts],
        "precision": ctx.precision.name,
    }
    store = ctx.chunks("text", key, PROMPTS_A_FILE, build, total=len(prompts))
    store.ensure(len(prompts), "Encoding prompts")
    for i, prompt in enumerate(prompts):
        row = unpack(store.row(i))
        model.embeddings[prompt] = Conditioning(
            {k: v.to(ctx.device, copy=True) for k, v in row.items()}
        )
    if model.base is not None:
        model.base.embeddings |= model.embeddings


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
