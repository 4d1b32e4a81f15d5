"""Class images the user brings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from dreambooth import Problem
from dreambooth.component import JobPath
from dreambooth.interfaces import Prior, PriorCost
from dreambooth_plugins.prior.class_prompt import CLASS_PROMPT, ClassPrompt, class_prompt_problems

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
        """The folder must be there, hold pictures, and not be the subject's."""
        from dreambooth_plugins.data import file_types, scanning

        yield from class_prompt_problems(self.prompt, job)
        at = ("prior", "path")
        reason, hint = scanning.folder_problem(self.path)
        if reason:
            yield Problem(at, reason, f"{hint} Or use prior: generated.".replace("data.", "prior."))
            return
        names = scanning.list_files(self.path, False)
        if not any(file_types.looks_like_image(self.path / name) for name in names):
            below = scanning.image_folders(self.path).most_common(1)
            lie = f" ({below[0][1]} lie in its folder {below[0][0]!r})" if below else ""
            other = f"set prior.path to {self.path / below[0][0]}" if below else (
                "put pictures of the class there")  # fmt: skip
            yield Problem(
                at,
                f"there are no class images in {self.path}{lie}",
                f"{other}, or use prior: generated",
            )
        own = getattr(job.data, "path", None)
        if own is not None and os.path.realpath(own) == os.path.realpath(self.path):
            yield Problem(
                at,
                "the class images are the subject's own pictures (data.path)",
                "name a folder of other members of the class, or use prior: generated",
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
