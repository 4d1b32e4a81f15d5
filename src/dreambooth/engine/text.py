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
        prompts += [job.subject.fill(p) for p in job.samples.prompts]
    if job.samples.every or job.prior.cost(job).keeps_base:  # both draw while training
        prompts += job.sampler.extra_prompts()
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

    # One prompt a chunk: families without padding give each prompt its own length.
    @torch.no_grad()
    def build(indices: Sequence[int]) -> dict[str, Tensor]:
        with ctx.autocast():
            encoded = model.encode_prompts([prompts[i] for i in indices])
        return {k: v[None] for k, v in encoded[0].tensors.items()}

    key = {
        "prompts": prompts,
        "encoders": [model.fingerprint(part) for part in parts],
        "precision": ctx.precision.name,
    }
    store = ctx.chunks("text", key, 1, build, total=len(prompts))
    store.ensure(len(prompts), "Encoding prompts")
    for i, prompt in enumerate(prompts):
        row = store.row(i)
        model.embeddings[prompt] = Conditioning({k: v.to(ctx.device) for k, v in row.items()})
    if model.base is not None:
        model.base.embeddings |= model.embeddings
