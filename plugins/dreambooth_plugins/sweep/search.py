"""Optuna's samplers and pruners as a sweep asks for them, without state of their own.

Seeded once, two workers would draw the same values, and unseeded ones nobody could draw again. So
each trial has a sampler of its own, seeded by the sweep's seed and the trial's number: what is
drawn does not depend on who draws it, nor on what a worker did before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.helpers.random import derive
from dreambooth_plugins.sweep.trials import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from dreambooth_plugins.sweep.file import Pruner, Search


def sampler(search: Search, seed: int, points: Sequence[Mapping[str, Any]]) -> BaseSampler:
    """Return the sampler of a study; `points` are those of a grid, in order."""
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    def number(study: Any, trial: Any) -> int:
        return number_of(trial, study.get_trials(deepcopy=False))

    def inner(study: Any, trial: Any, key: str = "") -> BaseSampler:
        own = derive(seed, f"sweep:{key}", number(study, trial)) % 2**32
        if search.kind == "random":
            return RandomSampler(seed=own)
        return TPESampler(
            seed=own,
            n_startup_trials=search.startup,
            multivariate=True,
        )

    class EachItsOwn(BaseSampler):  # type: ignore[misc]
        """Asks a sampler that is a function of the trial's number."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return inner(study, trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return inner(study, trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            # Two keys draw apart, each from a sampler of its own.
            return inner(study, trial, name).sample_independent(study, trial, name, distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            inner(study, trial).after_trial(study, trial, state, values)

    class Listed(BaseSampler):  # type: ignore[misc]
        """Gives the k-th trial the k-th point.

        Optuna's own grid draws among points that nobody has begun, and two workers that ask at
        one moment may draw the same.
        """

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return {}

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return points[number(study, trial) % len(points)][name]

    return Listed() if search.kind == "grid" else EachItsOwn()


def pruner(options: Pruner) -> BasePruner:
    """Return the pruner of a study."""
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if options.kind == "median":
        return MedianPruner(n_startup_trials=options.startup, n_warmup_steps=options.warmup)
    if options.kind == "halving":
        return SuccessiveHalvingPruner(
            min_resource=max(1, options.warmup), reduction_factor=options.share
        )
    return NopPruner()
