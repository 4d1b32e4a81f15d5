"""Train what globs name."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dreambooth import Problem
from dreambooth.errors import JobError
from dreambooth_plugins.freezing.adapter.targets import nothing
from dreambooth_plugins.freezing.per_part import PerPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Context, LoadedModel, ModelInfo

Glob = Annotated[str, Field(min_length=1)]


class Patterns(PerPart):
    """Train the parameters that globs name, less those that others name.

    Globs are matched against qualified parameter names such as
    `unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight`; `*` stands for any text,
    dots included. The plan prints how many each of them names.
    """

    kind: Literal["patterns"] = "patterns"
    train: list[Glob] = Field(min_length=1)
    """Globs of what trains, e.g. `["unet.*.attn2.*", "text_encoder.*layer_norm*"]`."""
    freeze: list[Glob] = Field(default=[])
    """Globs of what stays frozen nevertheless, e.g. `["*.bias"]`."""

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find globs that begin with another part, and options of parts that do not train."""
        if info is None:
            return
        reached = _reached(info)
        for i, pattern in enumerate(self.train):
            part = pattern.split(".", 1)[0]
            if part in info.parts and part not in reached:
                kind = (
                    f", {info.frozen[part]}, which stays frozen here" if part in info.frozen else ""
                )
                yield Problem(
                    ("freezing", "train", i),
                    f'globs do not reach into "{part}"{kind}',
                    f"parts they can train: {', '.join(reached)}",
                )
        yield from self.part_problems(job, self.trained_parts(info))

    def trained_parts(self, info: ModelInfo) -> tuple[str, ...]:
        """Return the parts whose names a glob may begin with."""
        parts = _reached(info)
        return tuple(p for p in parts if any(_may_name(pattern, p) for pattern in self.train))

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return what is named; `JobError` for a glob that names nothing."""
        named = dict(model.named_parameters(*self.trained_parts(model.info)))
        for option in ("train", "freeze"):
            for pattern in getattr(self, option):
                if not any(fnmatchcase(name, pattern) for name in named):
                    raise nothing(option, pattern, named)
        found = {
            name: parameter
            for name, parameter in named.items()
            if any(fnmatchcase(name, p) for p in self.train)
            and not any(fnmatchcase(name, p) for p in self.freeze)
        }
        if not found:
            raise JobError(
                "freezing.freeze takes away all that freezing.train names",
                "name less in freezing.freeze",
            )
        return found

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return how many parameters each glob names."""
        named = [name for name, _ in model.named_parameters(*self.trained_parts(model.info))]
        return [
            f"{option} {pattern}: {sum(fnmatchcase(name, pattern) for name in named)} tensors"
            for option in ("train", "freeze")
            for pattern in getattr(self, option)
        ]


def _reached(info: ModelInfo) -> tuple[str, ...]:
    parts = info.part_names("denoiser", "text_encoders")
    return tuple(part for part in parts if part not in info.frozen)


def _may_name(pattern: str, part: str) -> bool:
    """Say whether a glob can match a name that begins with `part.`, by what it begins with."""
    fixed, begin = re.split(r"[*?\[]", pattern, maxsplit=1)[0], f"{part}."
    return begin.startswith(fixed) or fixed.startswith(begin)
