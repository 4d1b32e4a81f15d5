"""torch.compile around the trained forward, where it is asked for or where it pays."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.step import forward_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.nn import Module

    from dreambooth.engine.session import Session

WORTH = 60 * 60.0
"""Seconds of steps ahead below which compiling, some minutes on a CPU, cannot pay."""
MARGIN = 1.03
"""A compiled step must be this much faster than a plain one."""
TIMED = 3


@dataclass
class Compiled:
    """The parts that a training step runs through, compiled; everything else runs them plainly.

    Samples and validation have other shapes: they would compile again for each.
    """

    modules: list[Module]

    def __post_init__(self) -> None:
        self._calls: list[Any] = [torch.compile(module._call_impl) for module in self.modules]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Use the compiled forms in the block."""
        for module, call in zip(self.modules, self._calls, strict=True):
            module._compiled_call_impl = call
        try:
            yield
        finally:
            for module in self.modules:
                module._compiled_call_impl = None


def settle(s: Session, recorded: bool | None) -> bool:
    """Decide `train.compile` for a run, put it into effect and return what was decided.

    `recorded` is what the run's first life decided: a resumed one keeps it, since compiled and
    plain steps agree to rounding only. Where the compiler fails the run goes on without. The main
    process decides for all.
    """
    wanted = s.job.train.compile
    if wanted == "auto" and recorded is not None:
        wanted = recorded
    if wanted is False or (wanted == "auto" and not s.ctx.share(long_enough(s))):
        return False
    parts = {*s.model.info.part_names("denoiser"), *s.trained_parts}
    s.compiled = Compiled([s.model.parts[name] for name in sorted(parts)])
    works = s.ctx.share(compiles(s))
    if not works or (wanted == "auto" and not s.ctx.share(faster(s))):
        s.compiled = None
    return s.compiled is not None


def compiles(s: Session) -> bool:
    """Compile by a first pass; say whether it worked, and warn where it did not."""
    from torch._dynamo.exc import TorchDynamoException  # a second of imports for those who compile

    with s.ctx.progress("Compiling", 1) as bar:
        try:
            seconds_a_pass(s)
        except TorchDynamoException as error:
            s.ctx.warn(f"torch.compile failed, going on without: {str(error).splitlines()[0]}")
            return False
        bar.advance()
    return True


def long_enough(s: Session) -> bool:
    """Say whether the steps ahead take long enough for compiling to pay."""
    passes = s.job.train.accumulation * (s.job.train.steps - s.state.step)
    return seconds_a_pass(s) * passes >= WORTH


def faster(s: Session) -> bool:
    """Say whether compiled steps beat plain ones here, in turn."""
    compiled = s.compiled
    ratios = []
    for _ in range(TIMED):
        s.compiled = None
        plain = seconds_a_pass(s)
        s.compiled = compiled
        ratios.append(plain / seconds_a_pass(s))
    return median(ratios) > MARGIN


def seconds_a_pass(s: Session) -> float:
    """Return the seconds of a forward and backward pass over the next step's rows.

    Nothing is updated; a training step seeds its own draws, so nothing of this shows later.
    """
    batch = s.batches.make(s.state.step, 0)
    began = time.perf_counter()
    forward_rows(s, batch).sum().backward()
    if s.ctx.device.type != "cpu":
        torch.accelerator.synchronize(s.ctx.device)
    seconds = time.perf_counter() - began
    s.state.optimizer.zero_grad(set_to_none=True)
    return seconds
