"""`auto`: the sampler that is usual for the model's family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth_plugins.common.by_family import of_family
from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from dreambooth import Job, Sampler
    from dreambooth.interfaces import LoadedModel, ModelInfo


class Auto(ClassifierFreeGuidance):
    """The sampler that is usual for the model: `cfg` for what predicts epsilon or v.

    Options are those of `cfg`; a family that comes to another one takes those it has as well. The
    run's own job names what it came to.
    """

    kind: Literal["auto"] = "auto"  # type: ignore[assignment]

    def _of(self, info: ModelInfo) -> Sampler:
        found: Sampler = of_family(self, "sampler", info, info.sampler, "cfg")
        return found

    def settled(self, describe: Callable[[], ModelInfo]) -> Sampler:  # type: ignore[override]
        """Return the sampler of the family, with the guidance that is usual for it."""
        found = self._of(describe())
        return found.settled(describe)

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a family that names none, and what its sampler finds."""
        if info is None:
            return ()
        try:
            return self._of(info).check(job, info)
        except JobError as error:
            return (Problem(("sampler",), error.message, error.hint),)

    def sample(self, model: LoadedModel, prompts: Sequence[str], **options: Any) -> Tensor:
        """Draw with the sampler of the family."""
        return self._of(model.info).sample(model, prompts, **options)
