"""The model slot: a family of diffusion models behind names that are the same for all families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from dreambooth.component import Component
from dreambooth.component.door import Called
from dreambooth.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module, Parameter

    from dreambooth.component.model_info import ModelInfo
    from dreambooth.component.tensors import (
        AdapterTensors,
        Conditioning,
        Latents,
        RowGeometry,
    )
    from dreambooth.interfaces.context import Context
    from dreambooth.interfaces.vocabulary import Vocabulary

NEW_ROWS = "new_rows"
"""Last part of the qualified name of a parameter that `LoadedModel.add_tokens` made."""


class LoadedModel(Called, ABC):
    """An opened model. Parts load on first use and leave memory with `release`.

    Neutral to the family: the engine and the plugins speak of roles and of qualified parameter
    names (`unet.down_blocks.0...`), which are the keys of checkpoints, manifest and EMA.
    """

    info: ModelInfo
    parts: Mapping[str, Module]
    """Loads a part when it is first asked for; iterating does not load."""

    def __init__(self) -> None:
        self.embeddings: dict[str, Conditioning] = {}
        """Encoded prompts that stay valid while `text_is_frozen`."""
        self.text_is_frozen = True
        """False from the moment a text encoder trains: the engine then empties `embeddings`."""
        self.base: LoadedModel | None = None
        """The frozen copy that `keep_base` made; None where nobody asked for one."""
        self.words: dict[str, tuple[str, ...]] = {}
        """Words that `add_tokens` gave tokens of their own, with the names of these."""

    @abstractmethod
    def loaded(self) -> tuple[str, ...]:
        """Return the names of the parts that are in memory now."""

    @abstractmethod
    def release(self, part: str) -> None:
        """Drop a part from memory; it is read from the source again if asked for again."""

    @abstractmethod
    def fingerprint(self, part: str) -> str:
        """Return a hash of the part's configuration and stored weights: part of cache keys."""

    @abstractmethod
    def encode_images(self, pixels_BCHW: Tensor) -> Latents:
        """Encode float32 pixels in [-1, 1]."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode each prompt, unpadded: the result depends on the prompt alone.

        Runs with gradients where the caller has them enabled (a text encoder that trains).
        """

    def encode_part(self, part: str, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode each prompt with one text encoder alone: a piece of what `joined` puts together.

        With it encoders come into memory one after the other, and each keeps its texts under its
        own fingerprint. The default is for families of one encoder; where a family of several has
        none of its own, all of them encode together.
        """
        return self.encode_prompts(prompts)

    def joined(self, pieces: Mapping[str, Conditioning]) -> Conditioning:
        """Return what `encode_prompts` gives for a prompt, of what each encoder made of it.

        `pieces` is by part; the default puts the tensors of all together.
        """
        return next(iter(pieces.values())) if len(pieces) == 1 else _union(pieces)

    def encodes_apart(self) -> bool:
        """Say whether each text encoder can be asked alone (`encode_part`)."""
        one = len(self.info.part_names("text_encoders")) == 1
        return one or type(self).encode_part is not LoadedModel.encode_part

    @abstractmethod
    def collate(self, conditionings: Sequence[Conditioning]) -> Conditioning:
        """Join conditionings into a batch, padding and masking as the family does."""

    @abstractmethod
    def denoise(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predict from noisy latents z_t [B, C, h, w] at timesteps t [B].

        One sign and unit for all families: t as the noise schedule gives it; the prediction is
        epsilon, v, or the velocity noise - x0, as `info.prediction` says. A family whose network
        differs (a flipped sign, t in [0, 1]) converts inside.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to float32 pixels [B, 3, H, W], clamped to [-1, 1]."""

    @abstractmethod
    def save(
        self,
        dest: Path,
        solver_config: Mapping[str, Any],
        weights: Mapping[str, Tensor] | None = None,
        dtype: str = "fp32",
    ) -> None:
        """Write a diffusers folder with portable key names.

        `weights` replaces tensors by qualified name (EMA weights); `dtype` is fp32, fp16 or bf16.
        """

    @abstractmethod
    def frozen_copy(self) -> LoadedModel:
        """Return a copy of denoiser and text encoders that later training does not change."""

    def keep_base(self) -> LoadedModel:
        """Return a frozen copy of the base, one for all who ask; made on the first call.

        Call it while this model still is the base (`Prior.open`, `FreezingPolicy.prepare`).
        """
        if self.base is None:
            self.base = self.frozen_copy()
        return self.base

    def add_tokens(self, name: str, count: int, words: str) -> Mapping[str, Parameter]:
        """Give the word `name` tokens of its own: prompts that say it mean them from now on.

        Returns the new rows by qualified name (ending in `NEW_ROWS`), [count, dim] float32, one
        entry a text encoder. They begin as the rows of `words`, and no other row is touched.
        `JobError` where the model cannot learn that word; call it once.
        """
        raise RunError(
            f"models of the family {self.info.family} cannot learn new tokens here",
            "use another freezing policy",
        )

    def without_tokens(self) -> AbstractContextManager[None]:
        """Read prompts as the base does for the block: added tokens are text like any other."""
        return nullcontext()

    def condition(
        self, cond: Conditioning, rows: Sequence[RowGeometry], *, guidance: float | None = None
    ) -> Conditioning:
        """Add what depends on the row (SDXL time ids, Flux guidance); the default adds nothing.
        `guidance`, where the network takes it: a sampler's; None in training."""
        return cond

    def adapter_keys(self, layout: str) -> Mapping[str, str]:
        """Map qualified module names to the names a file layout (`kohya`, ...) gives them."""
        return {}

    def adapter_file(self, layout: str, adapters: Sequence[AdapterTensors]) -> dict[str, Tensor]:
        """Return the tensors of a file of adapters, under the names `layout` has for them.

        The family owns what a layout calls its blocks, and which modules it has in one (a fused
        query, key and value). `RunError` for a layout that has no place for them.
        """
        raise self._no_layout(layout)

    def read_adapter(self, tensors: Mapping[str, Tensor]) -> list[AdapterTensors]:
        """Sort the tensors of somebody's file by module and role: the reverse of `adapter_file`.

        The layout is told by the names. First called with tensors on `meta`, whose shapes are held
        against the model, then with a mapping that reads each one when it is asked for: look at
        each once, and at no value. A module the model lacks is returned as the file names it.
        """
        raise self._no_layout("of that file")

    def _no_layout(self, layout: str) -> RunError:
        return RunError(
            f"adapters of the family {self.info.family} have no layout {layout} here",
            "export them as merged, which every tool reads",
        )

    def convert(self, part: str, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Return a part's tensors, named as `save` writes them, under the names a layout of
        `info.layouts` has for them. Raises `RunError` for what the layout cannot hold."""
        raise RunError(
            f"models of the family {self.info.family} cannot be written in the layout {layout}",
            "export the model as a diffusers folder",
        )

    def pipeline(self, folder: Path | None = None, file: Path | None = None) -> Any:
        """Return diffusers' own pipeline: what exported files are compared through.

        Without arguments it is of the base as it is in memory: its weights shared, without adapters
        and added tokens, drawing latents. With `folder` it is opened from that diffusers folder;
        with `file` from that single file, whose configuration lies in `folder`. `RunError` where
        the family has none (`info.pipeline` is empty).
        """
        raise self._no_pipeline()

    def answer(
        self, pipe: Any, prompts: Sequence[str], z_t: Tensor, t: Tensor, rows: Sequence[RowGeometry]
    ) -> tuple[Conditioning, Tensor]:
        """Return what diffusers itself makes of the same inputs: the referee of exports and tests.

        `pipe` is from `pipeline`; z_t [B, C, h, w], t [B], a prompt and a geometry a row. The
        conditioning has the names and shapes of `condition(collate(encode_prompts(...)))`, the
        prediction the sign and unit of `denoise`.
        """
        raise self._no_pipeline()

    def draw(
        self,
        pipe: Any,
        prompt: str,
        negative: str,
        latents: Tensor,
        solver: Any,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Return the latents [1, C, h, w] that a pipeline draws from noise of that shape.

        `solver` is the diffusers scheduler that takes the steps.
        """
        raise self._no_pipeline()

    def _no_pipeline(self) -> RunError:
        return RunError(
            f"models of the family {self.info.family} have no diffusers pipeline to compare with",
            "export the model as a diffusers folder",
        )

    @abstractmethod
    def stored_weights(self, part: str) -> Mapping[str, Tensor]:
        """Return a part's weights as the source holds them, float32 on the CPU, by qualified name.

        What trains starts from these: the part in memory may be rounded to half precision.
        """

    @abstractmethod
    def enable_gradient_checkpointing(self, parts: Sequence[str]) -> None:
        """Trade compute for memory in the named parts, in training and evaluation mode alike."""

    def conditionings(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Return a conditioning a prompt: kept ones where valid, the rest from one forward."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self.embeddings]
        fresh = dict(zip(missing, self.encode_prompts(missing), strict=True)) if missing else {}
        if self.text_is_frozen:
            self.embeddings |= fresh
        return [fresh[p] if p in fresh else self.embeddings[p] for p in prompts]

    def named_parameters(self, *parts_or_roles: str) -> Iterator[tuple[str, Parameter]]:
        """Yield qualified names (`unet.conv_in.weight`) and parameters of parts or roles."""
        for part in self.info.part_names(*parts_or_roles):
            for name, parameter in self.parts[part].named_parameters():
                yield f"{part}.{name}", parameter


def _union(pieces: Mapping[str, Conditioning]) -> Conditioning:
    from dreambooth.component.tensors import Conditioning

    return Conditioning({n: t for piece in pieces.values() for n, t in piece.tensors.items()})


class Model(Component):
    """A source of pre-trained weights of one family. Hook: `register_models`."""

    def describe(self) -> ModelInfo:
        """Read what the model is from its JSON files; `UserError` where it cannot be read."""
        raise NotImplementedError  # abstract: pydantic models cannot be ABCs with field defaults

    def vocabulary(self) -> Vocabulary | None:
        """Return how the tokenizer splits text, without torch; None where nobody knows.

        `UserError` where the model's files cannot be read.
        """
        return None

    def open(self, ctx: Context) -> LoadedModel:
        """Open the model for a run. Nothing heavy is read until a part is asked for.

        On the `meta` device parts have shapes but no weights: the plan counts with that.
        """
        raise NotImplementedError  # abstract

    def at(self, folder: Path) -> Model:
        """Return this component pointed at a diffusers folder written by `LoadedModel.save`."""
        raise NotImplementedError  # abstract
