"""Writing the original layout, and reading it back with `from_single_file`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from dreambooth.interfaces import Check
from dreambooth_plugins.common.tensors import write_tensors
from dreambooth_plugins.exporter.comparison import in_float32, live_outputs, tolerance_for
from dreambooth_plugins.exporter.diffusers_check import compare_pipeline
from dreambooth_plugins.exporter.embedding_check import load_word
from dreambooth_plugins.exporter.merging import trained_weights
from dreambooth_plugins.formats.embedding import EMBEDDING_FILE
from dreambooth_plugins.formats.model_spec import file_name, model_spec
from dreambooth_plugins.formats.original.names import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from dreambooth.interfaces import Artifact, Context, LoadedModel

CONFIG = "config"
"""Folder beside the file: the diffusers configuration and tokenizer."""


def write_single_file(
    artifact: Artifact,
    model: LoadedModel,
    dest: Path,
    ctx: Context,
    solver_config: Mapping[str, Any],
    dtype: str,
) -> None:
    """Write `<run>.safetensors` and `config/` into `dest`.

    The model is saved as a folder first and read from there part by part, so it is never whole in
    memory twice; the disk holds it twice for a while. `RunError` for what the layout cannot hold.
    """
    folder = dest / CONFIG
    model.save(folder, solver_config, trained_weights(artifact, model), dtype)
    whole: dict[str, Tensor] = {}
    parts = [part for part in model.info.parts if (folder / part).is_dir()]
    with ctx.progress("Writing one file", len(parts) + 1) as progress:
        for part in parts:
            whole |= model.convert(part, dict(_saved(folder / part)), LAYOUT)
            progress.advance()
        file = dest / file_name(ctx.job, "model")
        write_tensors(file, whole, model_spec(model.info, ctx.job, ""))
        progress.advance()
    whole.clear()  # they lie in the files that go now
    for weights in (*folder.rglob("*.safetensors"), *folder.rglob("*.safetensors.index.json")):
        weights.unlink()


def _saved(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def check_single_file(
    artifact: Artifact, model: LoadedModel, dest: Path, ctx: Context, dtype: str
) -> Check:
    """Open the file in `dest` as another program would, and compare it with the live model.

    Every weight of every part must be the trained one, or else the source's (equal to the bit,
    after the cast in half precision); text embeddings, predictions and drawn latents must agree.
    """
    [file] = (path for path in dest.glob("*.safetensors") if path.name != EMBEDDING_FILE)
    # Within it, so that what the file has of the base is in memory once.
    with in_float32(model, "source"):
        here = live_outputs(model, artifact.tensors, ctx, base="source")
        try:
            pipe = model.pipeline(dest / CONFIG, file)
        except (
            ValueError,
            TypeError,
            KeyError,
            RuntimeError,
            OSError,
            NotImplementedError,
        ) as error:
            said = (str(error) or type(error).__name__).splitlines()[0]
            return Check(False, f"diffusers cannot open {file.name}: {said}")
        return compare_pipeline(
            pipe,
            _expected(artifact, model),
            here,
            model,
            ctx,
            dtype,
            tolerance=tolerance_for(artifact),
            what="opened with from_single_file",
            load=lambda: load_word(pipe, artifact, dest, dtype, model.info),
        )


def _expected(artifact: Artifact, model: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight the file must have, one part in memory at a time."""
    trained = dict(trained_weights(artifact, model))
    for part in model.info.parts:
        for name, tensor in model.stored_weights(part).items():
            yield name, trained.pop(name, tensor)
    yield from trained.items()
