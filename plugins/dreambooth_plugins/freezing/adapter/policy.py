"""Train small adapters on top of a frozen base: LoRA and PEFT's other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dreambooth import Problem
from dreambooth.component import JobPath, Section
from dreambooth.errors import JobError
from dreambooth.interfaces.freezing import ArtifactKind
from dreambooth_plugins.freezing.adapter.methods import METHODS, Glob, Method
from dreambooth_plugins.freezing.adapter.targets import BY_TYPE, Preset, choices
from dreambooth_plugins.freezing.per_part import Name, NamedParts, without_effect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth import Job
    from dreambooth.interfaces import Artifact, Context, LoadedModel, ModelInfo
    from dreambooth_plugins.formats.lora.contents import Contents
    from dreambooth_plugins.formats.lora.low_rank import Factors, LowRank

Targets = Preset | Annotated[list[Glob], Field(min_length=1)]
LORA: Any = "lora"
CALLED = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
GOES_ON_AS = {"lora": {"lora"}, "dora": {"lora", "dora"}, "loha": {"loha"}, "lokr": {"lokr"}}
"""What a file's adapters may be, by the method that is to train."""
UNET = "unet"
"""What files and their readers call the denoiser, whatever it is."""
LOW_RATE = 2e-5
"""A learning rate below which an adapter hardly learns."""


class PartAdapter(Section):
    """What one part has of its own; null takes the policy's."""

    method: Annotated[Method, METHODS] | None = None
    """The part's method, with a rank of its own for instance."""
    targets: Targets | None = None
    """The part's targets."""


class Adapter(NamedParts):
    """Train an adapter on the named parts; everything of the base stays frozen.

    Learns with a higher rate than full tuning: 1e-4 is usual, 5e-5 for the text encoder. What it
    trains is float32 whatever the base is held in, and the result is a small file.
    """

    kind: Literal["adapter"] = "adapter"
    artifacts: ClassVar[frozenset[ArtifactKind]] = frozenset({"adapter"})
    method: Annotated[Method, METHODS] = LORA
    """The method and its options; the bare name is short for its defaults."""
    targets: Targets = "attention"
    """Modules that get an adapter: a preset, or a list of presets and globs such as `to_q`,
    `attn2.to_*`, `unet.mid_block.*`."""
    parts: dict[Name, PartAdapter] = Field(default={})
    """What a part has of its own, e.g. `{text_encoder: {method: {kind: lora, rank: 4}}}`."""
    init: JobPath | None = None
    """A LoRA to go on training (a DoRA, LoHa or LoKr where `method` is one): a .safetensors file
    with diffusers', PEFT's, kohya's or LyCORIS' names, or a folder with one. Its modules, ranks
    and alphas are taken instead of those named here."""

    def method_of(self, part: str) -> Method:
        """Return the method of a part."""
        own = self.parts.get(part)
        return own.method if own and own.method else self.method

    def targets_of(self, part: str) -> list[str]:
        """Return the presets and globs of a part."""
        own = self.parts.get(part)
        targets = own.targets if own and own.targets else self.targets
        return [targets] if isinstance(targets, str) else targets

    def check(self, job: Job, info: ModelInfo | None) -> Iterator[Problem]:
        """Find parts and presets the model does not have, and a file that is no LoRA."""
        wrong = list(super().check(job, info))
        yield from wrong
        if info is None or wrong:
            return
        trained = self.named_parts(info)
        for name in self.parts:
            if name not in trained:
                yield without_effect(("freezing", "parts", name), name, trained)
        for part in trained:
            yield from self._preset_problems(part, info)
        if self.init is not None:
            yield from self._init_problems(self.init, trained, info)

    def _preset_problems(self, part: str, info: ModelInfo) -> Iterator[Problem]:
        own = part in self.parts and self.parts[part].targets is not None
        at = ("freezing", "parts", part, "targets") if own else ("freezing", "targets")
        presets = info.adapter_presets.get(part, {})
        target = (self.parts[part] if own else self).targets
        if isinstance(target, str) and target not in presets and target not in BY_TYPE:
            yield Problem(at, f"{part} has no {target}", choices(part, presets))

    def _init_problems(
        self, path: Path, trained: Sequence[str], info: ModelInfo
    ) -> Iterator[Problem]:
        from dreambooth_plugins.formats.lora.contents import read_all

        at = ("freezing", "init")
        try:
            files = read_all(path)
        except JobError as error:
            yield Problem(at, error.message, error.hint)
            return
        for contents in files:
            for message, hint in self._misfits(contents, trained, info):
                yield Problem(at, message, hint)

    def _misfits(
        self, contents: Contents, trained: Sequence[str], info: ModelInfo
    ) -> Iterator[tuple[str, str]]:
        """Say why a file cannot go on here, and what to do: its family, parts and methods."""
        from dreambooth_plugins.formats.lora.families import FAMILIES, SD1, SD2, fits, with_article

        name = contents.path.name
        own = FAMILIES.get(info.family)
        # A base of other sizes than the published ones is like SD in its build.
        found = contents.family
        if found and not (fits(found, own) if own else found in (SD1, SD2)):
            yield (
                f"{name} is {with_article(contents.family)}, the model is of "
                f"{own or 'another family'}",
                "an adapter goes on with a base of its own family: change model.source or init",
            )
            return
        for stored in contents.parts:
            part = _denoiser(info) if stored == UNET else stored
            if part not in trained:
                yield (
                    f"{name} has adapters for {part}, which does not train here",
                    f"add {part} to freezing.train: what the file adapts goes on training",
                )
                continue
            kind = self.method_of(part).kind
            for found in sorted(contents.methods(stored) - GOES_ON_AS.get(kind, set())):
                yield (
                    f"{name} is a {CALLED[found]}, {part} is to get {kind}",
                    f"set freezing.method to what the file is: {found}",
                )

    def adapter_methods(self) -> frozenset[str]:
        """Return the kinds of methods in use."""
        own = {part.method.kind for part in self.parts.values() if part.method}
        return frozenset({self.method.kind, *own})

    def prepare(self, model: LoadedModel, ctx: Context) -> None:
        """Put the adapters onto the model: zero updates, or those of `init`."""
        from dreambooth_plugins.freezing.adapter.modules import PartOptions, attach

        given: Mapping[str, Mapping[str, LowRank | Factors]] = {}
        if self.init is not None:
            from dreambooth_plugins.formats.lora.contents import read_all
            from dreambooth_plugins.formats.lora.file import read

            given = read(read_all(self.init), model)
        wanted = {
            part: PartOptions(self.method_of(part), self.targets_of(part))
            for part in self.named_parts(model.info)
        }
        attach(wanted, given, model, ctx)

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        """Return the parameters of the adapters."""
        from dreambooth_plugins.freezing.adapter.modules import adapter_parameters

        return adapter_parameters(model, self.named_parts(model.info))

    def notes(self, model: LoadedModel, ctx: Context) -> list[str]:
        """Return method, rank and number of modules of each part, and a rate that is too low."""
        from dreambooth_plugins.freezing.adapter.modules import describe

        source = f", from {self.init.name}" if self.init is not None else ""
        parts = self.named_parts(model.info)
        lines = [describe(self.method_of(part), model, part) + source for part in parts]
        if foreign := self._foreign():
            lines.append(f"left out of {self.init}, as no adapter's: {foreign}")
        rates = {p: self.lr.get(p, ctx.job.optimizer.lr) for p in self.named_parts(model.info)}
        low = [f"{rate:g} for {part}" for part, rate in rates.items() if rate < LOW_RATE]
        hint = f"adapters want a learning rate of about 1e-4, and have {' and '.join(low)}"
        return [*lines, hint] if low else lines

    def _foreign(self) -> str:
        """Name the tensors of `init` that are not taken over."""
        from dreambooth_plugins.formats.lora.contents import read_all

        names = [n for file in read_all(self.init) for n in file.foreign] if self.init else []
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    def showing_base(self, model: LoadedModel) -> AbstractContextManager[None]:
        """Show the base: adapters off, its own text embeddings, no second model in memory."""
        from dreambooth_plugins.freezing.adapter.modules import disabled

        return disabled(model, self.named_parts(model.info))

    def artifact(self, model: LoadedModel, weights: Mapping[str, Tensor]) -> Artifact:
        """Return the adapters, and each module's rank, alpha and scale as metadata."""
        from dreambooth_plugins.freezing.adapter.modules import artifact

        methods = {part: self.method_of(part) for part in self.named_parts(model.info)}
        return artifact(methods, model, weights)

    def at(self, folder: Path) -> Adapter | None:
        """Return this policy beginning with the adapter an exporter wrote into `folder`.

        None for methods that no file is read of.
        """
        if self.adapter_methods() - GOES_ON_AS.keys():
            return None
        return self.model_copy(update={"init": folder})


def _denoiser(info: ModelInfo) -> str:
    return next(iter(info.part_names("denoiser")), UNET)
