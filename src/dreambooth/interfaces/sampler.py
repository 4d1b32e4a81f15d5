"""The sampler slot: from prompts and seeds to latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.component import Component

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dreambooth.interfaces.context import Context, Progress
    from dreambooth.interfaces.model import LoadedModel


class Sampler(Component):
    """Draws pictures. Hook: `register_samplers`. Serves class images, previews and `dbt sample`."""

    def sample(
        self,
        model: LoadedModel,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        solver_config: Mapping[str, Any],
        ctx: Context,
        negative: str | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return latents [B, C, h, w] (float32) for B prompts and B seeds.

        One generator an image, made from its seed alone, so a picture does not depend on the
        batch it is drawn in. `size` is (height, width) in pixels; `negative` replaces the
        component's own negative prompt; `progress` is advanced once a sampling step, which raises
        a `KeyboardInterrupt` where the run was asked to stop. Called without gradients and in
        evaluation mode.
        """
        raise NotImplementedError  # abstract

    def extra_prompts(self) -> list[str]:
        """Return prompts `sample` encodes besides those it is given (the negative prompt).

        They are encoded beforehand, so that a frozen text encoder can leave memory.
        """
        return [""]

    def sampling_steps(self) -> int:
        """Return the number of sampling steps, as `NoiseSchedule.solver_config` wants it."""
        raise NotImplementedError  # abstract

    def forwards(self, solver_config: Mapping[str, Any] | None = None) -> float:
        """Return the denoiser rows one picture costs, for the plan.

        `solver_config` is what `sample` would get; None where it is not known.
        """
        return 2.0 * self.sampling_steps()
