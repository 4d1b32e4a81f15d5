"""What changes while a run trains, and nothing else: weights, optimizer, average, step."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreambooth.engine.checkpoints.optimizer import (
    check_optimizer,
    check_shapes,
    group_changes,
    group_options,
    restored_groups,
)
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch.nn import Parameter

OPTIMIZER_SEPARATOR = "::"


@dataclass
class TrainState:
    """The state of a run: exactly what a checkpoint holds."""

    parameters: Mapping[str, Parameter]
    """What trains, float32, by qualified name."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    base_lrs: list[float]
    """Learning rate of each optimizer group before the schedule."""
    ema_decay: float | None = None
    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """Steps in a row that were passed over because they were not finite."""
    ema: dict[str, Tensor] = field(default_factory=dict)
    while_showing: Callable[[], AbstractContextManager[None]] = nullcontext
    """What else has to change while the model shows other weights than those that train."""
    starts: list[int] = field(default_factory=list)
    """Optimizer step at which each group's warm-up begins; by default the first one's."""

    def __post_init__(self) -> None:
        self._built = group_options(self.optimizer)
        self.starts = self.starts or [0] * len(self.base_lrs)
        if self.ema_decay is not None and not self.ema:
            self.ema = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update_ema(self, overflowed: Tensor | None = None) -> None:
        """Move the average towards the weights, after optimizer step number `step`.

        `overflowed` [] bool says on the device that there was no update: the average stays.
        """
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        averages = list(self.ema.values())
        weights = [self.parameters[name].detach() for name in self.ema]
        if overflowed is None:
            torch._foreach_lerp_(averages, weights, 1 - decay)
            return
        share = torch.where(overflowed, 0.0, 1 - decay)
        torch._foreach_lerp_(averages, weights, [share] * len(averages))

    def result(self) -> dict[str, Tensor]:
        """Return the weights previews and exports use: the average, where there is one."""
        source = self.ema if self.ema else self.parameters
        return {name: tensor.detach() for name, tensor in source.items()}

    @contextmanager
    def showing_result(self) -> Iterator[None]:
        """Let the model compute with the averaged weights for the block, then with its own again.

        The tensors change places and none is copied: previews take no more memory than training.
        """
        if not self.ema:
            yield
            return
        kept = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.ema[name]
            with self.while_showing():
                yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = kept[name]

    @torch.no_grad()
    def _copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return every tensor to save, as file stem -> name -> tensor."""
        out = {
            "trainable": {n: p.detach() for n, p in self.parameters.items()},
            "optimizer": self._optimizer_tensors(),
        }
        if self.ema:
            out["ema"] = dict(self.ema)
        return out

    def numbers(self) -> dict[str, Any]:
        """Return everything to save that is not a tensor, as JSON data."""
        scaler = self.scaler.state_dict()
        numbers = {
            "step": self.step,
            "skipped": self.skipped,
            "scaler": scaler,
            "optimizer": self._optimizer_numbers(),
        }
        if changed := group_changes(self.optimizer, self._built):
            numbers["groups"] = changed
        return numbers

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Take back what `tensors` and `numbers` returned; `RunError` where names differ."""
        saved = tensors["trainable"]
        if set(saved) != set(self.parameters) or bool(self.ema) != ("ema" in tensors):
            raise RunError(
                "the checkpoint holds other parameters than this job trains",
                "the job's freezing policy or EMA changed: start anew with --fresh",
            )
        self.adopt(tensors)
        self.step = int(numbers["step"])
        self.skipped = int(numbers.get("skipped", 0))
        param_groups = restored_groups(self.optimizer, self._built, numbers.get("groups", []))
        self._load_optimizer(tensors["optimizer"], numbers["optimizer"], param_groups)
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])

    def adopt(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take a checkpoint's weights (and average) alone: step and optimizer stay as they are."""
        check_shapes(self.parameters, tensors["trainable"])
        check_shapes(self.ema, tensors.get("ema", {}))
        self._copy_in(tensors["trainable"])
        for name in self.ema:
            self.ema[name].copy_(tensors["ema"][name])

    def end(self) -> None:
        """Let go of what only further steps would need; the last checkpoint has it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def _optimizer_items(self) -> Iterator[tuple[str, str, Any]]:
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield name, key, value

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}{OPTIMIZER_SEPARATOR}{key}": value.detach()
            for name, key, value in self._optimizer_items()
            if isinstance(value, Tensor)
        }

    def _optimizer_numbers(self) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for name, key, value in self._optimizer_items():
            if not isinstance(value, Tensor):
                out.setdefault(name, {})[key] = value
        return out

    def _load_optimizer(
        self,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Mapping[str, Any]],
        param_groups: list[dict[str, Any]],
    ) -> None:
        # Loaded through the optimizer's own state_dict, so that it places and casts as it wants.
        order = {id(p): name for name, p in self.parameters.items()}
        state: dict[int, dict[str, Any]] = {}
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        by_name: dict[str, dict[str, Any]] = {n: dict(v) for n, v in numbers.items()}
        for full, tensor in tensors.items():
            name, key = full.split(OPTIMIZER_SEPARATOR)
            by_name.setdefault(name, {})[key] = tensor
        # float16's loss scaling leaves updates out without counting them.
        updates = 0 if self.scaler.is_enabled() else self.step - self.skipped
        check_optimizer(self.optimizer, self.parameters, by_name, updates)
        for index, parameter in enumerate(flat):
            if order[id(parameter)] in by_name:
                state[index] = by_name[order[id(parameter)]]
        self.optimizer.load_state_dict({"state": state, "param_groups": param_groups})
