"""Weight files, and a forward pass of shapes alone, held against a part's configuration.

So the plan says what loading would say, and a configuration that grew in somebody's hands asks for
no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.errors import JobError
from dreambooth_plugins.common.headers import read_header
from dreambooth_plugins.model.folder.loading import skeleton
from dreambooth_plugins.model.folder.plausible import MEND

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch.nn import Module

    from dreambooth_plugins.model.folder.part import Part
    from dreambooth_plugins.model.folder.source import Source

_OLD_ATTENTION = {
    ".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0.",
}  # fmt: skip
"""What diffusers called a VAE's projections before 0.12; it still reads them."""


def check_weights(source: Source, part: str, module: Module) -> None:
    """Raise `JobError` where a folder's weights and `module` are not of one network.

    Refused: a tensor that is missing or has another shape, and weights that the configuration does
    not describe; loading would leave these out and train a smaller network.

    Nothing is said of a single file, whose names and shapes diffusers converts, of a part whose
    library renames what it reads, of pickles, whose headers do not tell, and of weights that are
    still to be downloaded.
    """
    if source.single_file(part) is not None or source.part(part).renamed:
        return
    try:
        files = source.weight_files(part)
    except JobError:
        return  # whoever opens the model for a run says so
    if any(file.suffix.lower() != ".safetensors" for file in files):
        return
    known = source.part(part)
    stored = {
        _today(known, name): (shape, file)
        for file in files
        for name, shape in read_header(file).shapes.items()
    }
    wanted = {_today(known, name): tuple(t.shape) for name, t in own_tensors(module)}
    for name, shape in wanted.items():
        found, file = stored.get(name, (None, files[0]))
        _check_tensor(f"{file}", known, name, found, shape)
    more = sorted(name for name in stored.keys() - wanted.keys() if _is_of_the_network(known, name))
    if more:
        raise JobError(
            f"{stored[more[0]][1]} has {len(more)} weights of {part} that config.json does not "
            f"describe, e.g. {more[0]}",
            "the configuration is of a smaller network: copy or download it with its weights",
        )


def own_tensors(module: Module) -> list[tuple[str, torch.Tensor]]:
    """Return a module's state by name, each tensor once: files hold tied ones under one name."""
    seen: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return [(n, t) for n, t in state.items() if seen.setdefault(id(t), n) == n]


def check_forward(
    source: Source, part: str, dtype: torch.dtype, forward: Callable[[Module], object]
) -> None:
    """Raise `JobError` where a part as its configuration alone describes it fails on `meta`.

    For a part whose `forward` has failed: what a policy put into it is not in this one, so the
    fault is whose it is. Which options go together the libraries find out no sooner.
    """
    plain = skeleton(source, part).to(dtype)
    try:
        forward(plain)
    except Exception as error:
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise JobError(
            f"{source.config_folder(part) / 'config.json'} describes no {part} that works: "
            f"{type(error).__name__}: {said}",
            MEND,
        ) from error


def _check_tensor(
    file: str, part: Part, name: str, stored: tuple[int, ...] | None, wanted: tuple[int, ...]
) -> None:
    hint = "the file does not fit its configuration: download the model again"
    if stored is None:
        raise JobError(f"{file} lacks weights of {part.name}, e.g. {name}", hint)
    # A VAE's projections were 1 x 1 convolutions once.
    if stored != wanted and (part.role != "vae" or stored != (*wanted, 1, 1)):
        raise JobError(
            f"{file}: {name} is {list(stored)}, config.json asks for {list(wanted)}", hint
        )


def _is_of_the_network(part: Part, name: str) -> bool:
    """Say whether a tensor would be computed with: text encoders come with tables and heads."""
    return ".layers." in f".{name}" if part.role == "text_encoders" else True


def _today(part: Part, name: str) -> str:
    """Return a tensor's name without what differs between versions of the libraries."""
    if part.file_prefix:
        return name.removeprefix(part.file_prefix)
    if part.role == "vae":
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name
