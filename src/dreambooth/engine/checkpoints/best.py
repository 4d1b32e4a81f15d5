"""The best step so far by a logged number: which one, why, and its weights for the export."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.restoring import taking_back
from dreambooth.errors import RunError
from dreambooth.runs.checkpoints import Damaged, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dreambooth.engine.session import Session
    from dreambooth.job import KeepBest

WEIGHTS = ("trainable", "ema")
"""Files of a checkpoint that hold weights."""


class Best:
    """Watches one logged number; without a rule it watches nothing.

    Step 0 is left out: nothing has been learned there. Of equal values the first is the best, and
    values that are not finite are none.
    """

    def __init__(self, rule: KeepBest | None) -> None:
        self.rule = rule
        self.step: int | None = None
        self.value = math.nan
        self.seen = 0
        """How many values the best was chosen from."""

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Take the numbers logged at a step; say whether it is the best one now."""
        value = values.get(self.rule.metric, math.nan) if self.rule else math.nan
        if self.rule is None or step == 0 or not math.isfinite(value):
            return False
        self.seen += 1
        sign = 1.0 if self.rule.mode == "min" else -1.0
        if self.step is not None and sign * value >= sign * self.value:
            return False
        self.step, self.value = step, value
        return True

    def state(self) -> dict[str, Any] | None:
        """Return JSON data for the checkpoint; None while there is no best step."""
        if self.rule is None or self.step is None:
            return None
        watched = {"metric": self.rule.metric, "mode": self.rule.mode}
        return {**watched, "step": self.step, "value": self.value, "seen": self.seen}

    def load(
        self, state: Mapping[str, Any] | None, folder: Path, warn: Callable[[str], None]
    ) -> None:
        """Take back what `state` returned, where it is about the same number.

        `folder` holds the checkpoints: a best one that is gone is no longer the best.
        """
        rule = self.rule
        if not state or rule is None or state["metric"] != rule.metric:
            return
        if state["mode"] != rule.mode:
            return
        step = int(state["step"])
        if not (folder / name_of(step)).is_dir():
            warn(
                f"the checkpoint of step {step}, the best so far, is gone: the best step is "
                "looked for anew"
            )
            return
        self.step, self.value, self.seen = step, float(state["value"]), int(state["seen"])

    def why(self) -> str:
        """Return `step 300: validation/loss 0.1234, the lowest of 8`; empty where none is kept."""
        if self.rule is None or self.step is None:
            return ""
        which = "lowest" if self.rule.mode == "min" else "highest"
        chosen = f"the {which} of {self.seen}" if self.seen > 1 else "logged once"
        exported = "" if self.rule.export else " (the last step is exported)"
        return f"step {self.step}: {self.rule.metric} {self.value:.4g}, {chosen}{exported}"

    def outcome(self) -> dict[str, Any] | None:
        """Return what the run's manifest says of the kept step; None where none is kept."""
        state = self.state()
        if state is None or self.rule is None:
            return None
        return {**state, "exported": self.rule.export, "why": self.why()}


def show_best(session: Session, best: Best, folder: Path) -> None:
    """Say which step was kept, and put its weights in place of the last where those are exported.

    `folder` holds the checkpoints. Raises `RunError` where the best one is damaged.
    """
    if best.rule is None:
        return
    if best.step is None:
        session.ctx.warn(
            f"checkpoints.keep_best: {best.rule.metric} was never logged; the last step is exported"
        )
        return
    session.ctx.reporter.info(f"kept {best.why()}")
    if not best.rule.export or best.step == session.state.step:
        return
    try:
        found = files.load(folder / name_of(best.step), WEIGHTS)
    except Damaged as error:
        raise RunError(
            f"the checkpoint of step {best.step}, the best one, is damaged: {error}",
            "to export the last step instead: -o checkpoints.keep_best.export=false",
        ) from error
    with taking_back(found):
        session.state.adopt(found.tensors)
