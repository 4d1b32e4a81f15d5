"""Class images the user brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dreambooth import Problem
from dreambooth.component import JobPath
from dreambooth.interfaces import Prior, PriorCost
from dreambooth_plugins.prior.class_prompt import CLASS_PROMPT, ClassPrompt, unknown_in_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth import Job
    from dreambooth.interfaces import (
        Context,
        LoadedModel,
        ModelInfo,
        NoiseSchedule,
        PriorSet,
        Sampler,
        Subject,
    )


class FolderPrior(Prior):
    """Class images from a folder, resized and centre-cropped to the training size."""

    kind: Literal["folder"] = "folder"
    path: JobPath
    """Folder of class images."""
    prompt: ClassPrompt = CLASS_PROMPT
    """Prompt the class images are trained with; `{class_noun}` is filled in."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterable[Problem]:
        """The folder must be there and hold pictures."""
        from dreambooth_plugins.data import file_types, scanning

        yield from unknown_in_prompt(self.prompt)
        if self.path.is_dir():
            names = scanning.list_files(self.path, False)
            if not any(file_types.looks_like_image(self.path / name) for name in names):
                yield Problem(
                    ("prior", "path"),
                    f"there are no class images in {self.path}",
                    "put pictures of the class there, or use prior: generated",
                )
        else:
            yield Problem(
                ("prior", "path"),
                f"there is no folder {self.path}",
                "name a folder of class images, or use prior: generated",
            )

    def open(
        self, ctx: Context, model: LoadedModel, sampler: Sampler, schedule: NoiseSchedule
    ) -> PriorSet:
        """Encode the pictures (or read their cached latents)."""
        from dreambooth_plugins.prior.class_folder import OwnImages

        return OwnImages(self.path, self.prompt, ctx, model)

    def prompts(self, subject: Subject) -> list[str]:
        """Return the class prompt."""
        return [subject.fill(self.prompt)]

    def cost(self, job: Job) -> PriorCost:
        """Nothing is generated."""
        return PriorCost(0, 0)
