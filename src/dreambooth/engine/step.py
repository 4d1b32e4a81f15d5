"""One training step: rows in, one optimizer update, its numbers out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from dreambooth.engine.devices.automatic import compiling_pays, size_with
from dreambooth.engine.devices.compiling import Compiled
from dreambooth.engine.watching import nonfinite
from dreambooth.helpers.random import derive
from dreambooth.interfaces import FreezingPolicy, StepTensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dreambooth.engine.batches import Batch
    from dreambooth.engine.session import Session
    from dreambooth.interfaces import Conditioning, LoadedModel, RowGeometry

METERS = ("loss", "loss_instance", "loss_prior", "grad_norm")


@dataclass
class Meter:
    """Sums since the last logged step; they stay on the device until somebody reads them."""

    sums: dict[str, Tensor | float] = field(default_factory=lambda: dict.fromkeys(METERS, 0.0))
    count: Tensor | int = 0

    def add(self, counts: Tensor | None = None, **values: Tensor) -> None:
        """Add one step's numbers; `counts` [] bool says on the device whether it is one."""
        for name, value in values.items():
            added = value.detach()
            if counts is not None:
                added = torch.where(counts, added, torch.zeros_like(added))
            self.sums[name] = self.sums[name] + added
        self.count = self.count + (1 if counts is None else counts.float())

    def read(self) -> dict[str, float]:
        """Return the means; the first read after a step waits for the device."""
        count = max(int(self.count), 1)
        return {name: float(total) / count for name, total in self.sums.items()}

    def reset(self) -> None:
        """Begin anew after a logged step."""
        self.sums = dict.fromkeys(METERS, 0.0)
        self.count = 0

    def state(self) -> dict[str, float]:
        """Return the sums for a checkpoint (float32 values are exact as JSON numbers)."""
        return {
            "count": int(self.count),
            **{name: float(total) for name, total in self.sums.items()},
        }

    def load(self, state: dict[str, float]) -> None:
        """Take back what `state` returned."""
        self.count = int(state["count"])
        self.sums = {name: torch.tensor(float(state[name])) for name in METERS}


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did; tensors are scalars on the device."""

    loss: Tensor
    loss_instance: Tensor
    loss_prior: Tensor
    grad_norm: Tensor
    lr: float
    """Learning rate of the first parameter group that trains by now."""
    skipped: bool = False
    """True where the gradients were not finite and `train.nonfinite: skip` passed the step over."""
    overflowed: Tensor | None = None
    """[] bool with a loss scaler: True where it left the update out; still on the device."""


def condition(
    model: LoadedModel, prompts: Sequence[str], geometry: Sequence[RowGeometry]
) -> Conditioning:
    """Return the conditioning of rows; distinct prompts are encoded once."""
    return model.condition(model.collate(model.conditionings(prompts)), geometry)


def forward_rows(s: Session, batch: Batch) -> Tensor:
    """Return [B] weighted losses of one forward over instance and class rows together."""
    z_t = s.schedule.add_noise(batch.latents, batch.draw)
    target = s.schedule.target(batch.latents, batch.draw)
    reference = reference_prediction(s, batch, z_t)
    with s.compiled.on() if s.compiled else nullcontext(), s.ctx.autocast():
        cond = condition(s.model, batch.prompts, batch.geometry)
        pred = s.model.denoise(z_t, batch.draw.t, cond).float()
    if reference is not None and batch.wants_reference is not None:
        rows = batch.wants_reference.view(-1, 1, 1, 1)
        target = torch.where(rows, reference, target)
    weighed = s.schedule.weight(batch.draw.t)
    losses = s.job.loss.rows(
        StepTensors(
            pred=pred,
            target=target,
            reference=reference,
            t=batch.draw.t,
            snr=s.schedule.snr(batch.draw.t),
            is_prior=batch.is_prior,
            weight=batch.weight if weighed is None else batch.weight * weighed,
            mask=batch.mask,
            prediction=s.model.info.prediction,
            snr_table=s.schedule.snr_table(),
        )
    )
    nonfinite.require_answers(s, batch, z_t, target, pred, losses)
    return losses


def reference_prediction(s: Session, batch: Batch, z_t: Tensor) -> Tensor | None:
    """Return the frozen base's prediction of the rows it is asked about, zeros in the others.

    Made before the trained forward: switching adapters between forward and backward breaks
    gradient checkpointing.
    """
    rows, at = batch.reference_rows, batch.reference_at
    if at is None:
        return None
    out = torch.zeros_like(z_t)
    with torch.no_grad(), s.job.freezing.showing_base(s.model) as kept, s.ctx.autocast():
        base = kept or s.model
        prompts = [batch.reference_prompts[i] for i in rows]
        cond = condition(base, prompts, [batch.geometry[i] for i in rows])
        out[at] = base.denoise(z_t[at], batch.draw.t[at], cond).float()
    return out


def train_step(s: Session) -> StepResult:
    """Do one optimizer step over the effective batch and return its numbers.

    The loss is sum(instance rows) / N_instance + sum(class rows) / N_class, with N over the
    effective batch, known beforehand: accumulation and processes change nothing but rounding.
    """
    state, job = s.state, s.job
    s.stages.enter(state.step)
    lr = set_rates(s)
    halves = torch.zeros(2, device=s.ctx.device)
    seen: list[tuple[Batch, Tensor]] = []
    for micro in range(job.train.accumulation):
        batch = s.batches.make(state.step, micro)
        # Dropout inside modules draws from the global generator: seed it by position.
        torch.manual_seed(derive(job.train.seed, "dropout", state.step, micro, s.ctx.rank))
        last = micro == job.train.accumulation - 1
        found = s.parallel.rows(partial(forward_rows, s), batch, last=last)
        scaled = shares(s, batch, found)
        state.scaler.scale(scaled.sum()).backward()
        rows = scaled.detach()
        # By place: picking rows by a mask of them would wait for the device.
        instance, of_class = rows[: batch.instances], rows[batch.instances :]
        halves += torch.stack([instance.sum(), of_class.sum()])
        seen.append((batch, rows))
        if s.ctx.devices is not None:
            s.ctx.devices.moved()
        # On a GPU this look would wait for the device; there the logged loss is looked at.
        if s.ctx.device.type == "cpu" and job.train.nonfinite == "stop":
            nonfinite.require(s, batch, rows)
    if s.ctx.devices is not None:
        halves = s.ctx.devices.sum(halves)
    norm, skipped, overflowed = update(s, seen)
    return StepResult(halves.sum(), halves[0], halves[1], norm, lr, skipped, overflowed)


def set_rates(s: Session) -> float:
    """Set every group's rate for the step to come; return that of the first one that trains."""
    state, steps, shape = s.state, s.job.train.steps, s.job.lr_schedule
    training = []
    rated = zip(state.optimizer.param_groups, state.base_lrs, state.starts, strict=True)
    for group, base, start in rated:
        factor = shape.at(state.step, steps, start) if start else shape.at(state.step, steps)
        group["lr"] = base * factor
        if start <= state.step:
            training.append(group["lr"])
    return float(training[0])


def shares(s: Session, batch: Batch, rows: Tensor) -> Tensor:
    """Return [B]: each row's share of the step's loss, over the effective batch of its half."""
    class_share = int(len(rows) / s.job.train.batch_size) - 1
    per_half = rows.new_full((len(rows),), 1.0 / s.batches.effective)
    if class_share:
        per_half[s.job.train.batch_size :] /= class_share
    return rows * per_half


def update(s: Session, seen: list[tuple[Batch, Tensor]]) -> tuple[Tensor, bool, Tensor | None]:
    """Clip, step, average.

    Returns the gradient norm before clipping, whether the step was skipped, and with a loss scaler
    whether that left the update out.
    """
    state = s.state
    trained = [p for p in state.parameters.values() if p.grad is not None]
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    overflowed = ~torch.isfinite(norm) if state.scaler.is_enabled() else None
    skipped = nonfinite.passes_over(s, seen, norm)
    if not skipped:
        if s.job.train.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, s.job.train.max_grad_norm, norm)
        state.scaler.step(state.optimizer)
        mend_after(s, overflowed)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if not skipped:
        state.update_ema(overflowed)
    return norm, skipped, overflowed


def settle_compiling(s: Session, recorded: bool | None) -> bool:
    """Decide `train.compile` for a run, put it into effect and return what was decided.

    `recorded` is what the run's first life decided: a resumed one keeps it, since compiled and
    plain steps agree to rounding only. Where the compiler fails the run goes on without. The main
    process decides for all.
    """
    wanted = s.job.train.compile
    if wanted == "auto":
        wanted = long_enough(s) if recorded is None else recorded
    if not wanted:
        return False
    parts = {*s.model.info.part_names("denoiser"), *s.trained_parts}
    s.compiled = Compiled([s.model.parts[name] for name in sorted(parts)])
    if not s.ctx.share(compiles(s)):
        s.compiled = None
    return s.compiled is not None


def long_enough(s: Session) -> bool:
    """Say whether the steps ahead are worth compiling for."""
    share = 2 if s.job.prior.has_rows() else 1
    steps, train = s.job.train.steps - s.state.step, s.job.train
    rows = steps * train.accumulation * train.batch_size * share
    return compiling_pays(s.ctx.device.type, size_with(s.job, s.model), rows)


def compiles(s: Session) -> bool:
    """Compile by a pass over the next step's rows; say whether it worked, and warn where not.

    Nothing is updated; a training step seeds its own draws, so nothing of this shows later.
    """
    from torch._dynamo.exc import TorchDynamoException  # a second of imports for those who compile

    with s.ctx.progress("Compiling", 1) as bar:
        try:
            forward_rows(s, s.batches.make(s.state.step, 0)).sum().backward()
        except TorchDynamoException as error:
            s.ctx.warn(f"torch.compile failed, going on without: {str(error).splitlines()[0]}")
            return False
        s.state.optimizer.zero_grad(set_to_none=True)
        bar.advance()
    return True


def mend_after(s: Session, overflowed: Tensor | None) -> None:
    """Let the policy mend what an update must not have touched; there may have been none.

    With a loss scaler a policy that has something to mend costs a look at the device.
    """
    policy = s.job.freezing
    if type(policy).after_step is FreezingPolicy.after_step:
        return
    if overflowed is None or not overflowed:
        policy.after_step(s.model)
