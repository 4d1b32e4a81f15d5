"""What the methods of a plugin must return where that is tensors, or built on them."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from dreambooth.component.tensors import Conditioning, Latents
from dreambooth.interfaces.answers.words import Answer, is_tensor, of, shown, wants
from dreambooth.interfaces.loss import Loss
from dreambooth.interfaces.model import LoadedModel
from dreambooth.interfaces.optimizer import Optimizer
from dreambooth.interfaces.sampler import Sampler
from dreambooth.interfaces.scheduler import Draw, NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@of(Loss.rows)
def _loss_rows(answer: Answer, loss: Loss, s: Any) -> str:
    count = s.pred.shape[0]
    if not is_tensor(answer, count) or not answer.is_floating_point():
        return wants(answer, f"Tensor [{count}] float32, a loss a row,")
    if s.pred.requires_grad and not answer.requires_grad:
        return "returned losses that do not depend on the prediction: no gradient flows back"
    return ""


@of(NoiseSchedule.draw)
def _draw(
    answer: Answer, schedule: NoiseSchedule, shape: tuple[int, int, int], rngs: Sequence[Any]
) -> str:
    if not isinstance(answer, Draw):
        return wants(answer, "a Draw")
    if not is_tensor(answer.t, len(rngs)):
        return f"returned t {shown(answer.t)} where Tensor [{len(rngs)}] is wanted"
    if not is_tensor(answer.noise, len(rngs), *shape):
        wanted = [len(rngs), *shape]
        return f"returned noise {shown(answer.noise)} where Tensor {wanted} is wanted"
    return ""


@of(NoiseSchedule.timestep_quantiles)
def _quantiles(answer: Answer, schedule: NoiseSchedule, count: int, *_: Any, **__: Any) -> str:
    return "" if is_tensor(answer, count) else wants(answer, f"Tensor [{count}]")


@of(NoiseSchedule.add_noise, NoiseSchedule.target, NoiseSchedule.to_x0, LoadedModel.denoise)
def _like_first(answer: Answer, owner: Any, first: Any, *_: Any, **__: Any) -> str:
    good = is_tensor(answer, *first.shape)
    return "" if good else wants(answer, f"Tensor {list(first.shape)}")


@of(NoiseSchedule.snr, NoiseSchedule.weight)
def _snr(answer: Answer, schedule: NoiseSchedule, t: Any) -> str:
    good = answer is None or is_tensor(answer, *t.shape)
    return "" if good else wants(answer, f"Tensor {list(t.shape)} or None")


@of(NoiseSchedule.snr_table)
def _snr_table(answer: Answer, *_: Any, **__: Any) -> str:
    good = answer is None or (is_tensor(answer) and answer.dim() == 1)
    return "" if good else wants(answer, "Tensor [T] or None")


@of(Sampler.sample)
def _latents(
    answer: Answer,
    sampler: Sampler,
    model: Any,
    prompts: Sequence[str],
    *,
    size: tuple[int, int],
    **_: Any,
) -> str:
    latent = model.info.latent
    shape = (len(prompts), latent.channels, *(side // latent.factor for side in size))
    if not is_tensor(answer, *shape):
        return wants(answer, f"Tensor {list(shape)}")
    if not answer.is_floating_point() or not (answer.is_meta or bool(answer.isfinite().all())):
        return "returned latents that are not finite"
    return ""


@of(LoadedModel.encode_images)
def _encoded(answer: Answer, model: Any, pixels: Any) -> str:
    if not isinstance(answer, Latents):
        return wants(answer, "Latents")
    latent, (count, _, *sides) = model.info.latent, pixels.shape
    shape = (count, latent.channels, *(side // latent.factor for side in sides))
    for tensor in (answer.mean, *([] if answer.std is None else [answer.std])):
        if not is_tensor(tensor, *shape):
            return wants(tensor, f"Tensor {list(shape)}")
    return ""


@of(LoadedModel.encode_prompts, LoadedModel.conditionings)
def _prompts(answer: Answer, model: Any, prompts: Sequence[str]) -> str:
    good = isinstance(answer, list) and all(isinstance(c, Conditioning) for c in answer)
    if not good or len(answer) != len(prompts):
        return wants(answer, f"a list of {len(prompts)} Conditionings")
    return ""


@of(LoadedModel.encode_part)
def _pieces(answer: Answer, model: Any, part: str, prompts: Sequence[str]) -> str:
    return _prompts(answer, model, prompts)


@of(LoadedModel.decode)
def _decoded(answer: Answer, model: Any, latents: Any) -> str:
    sides = [side * model.info.latent.factor for side in latents.shape[-2:]]
    shape = (latents.shape[0], 3, *sides)
    if not is_tensor(answer, *shape):
        return wants(answer, f"Tensor {list(shape)}")
    # What the plan counts are shapes without values.
    good = answer.is_meta or bool(answer.isfinite().all())
    return "" if good else "returned pixels that are not finite"


@of(Optimizer.build)
def _optimizer(answer: Answer, optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> str:
    kind: Any = sys.modules["torch"].optim.Optimizer
    if not isinstance(answer, kind):
        return wants(answer, "a torch.optim.Optimizer")
    given, taken = (
        {id(p) for group in some for p in group["params"]} for some in (groups, answer.param_groups)
    )
    if given != taken:
        return f"returned an optimizer of {len(taken)} parameters where {len(given)} train"
    for group in answer.param_groups:
        if not 0 <= float(group["lr"]) < math.inf:
            return f"returned an optimizer with the learning rate {group['lr']}"
    return ""
