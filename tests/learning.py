"""Does a policy learn, and does it leave the rest alone? Helpers for tests of what trains."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.engine.step import forward_rows, train_step

if TYPE_CHECKING:
    from dreambooth.engine.session import Session
    from dreambooth.interfaces import LoadedModel

FAR = 100_000
"""A step no run gets to: its batches are never trained on."""


@torch.no_grad()
def fixed_loss(session: Session, batches: int = 6) -> float:
    """Return the mean loss over batches that are the same at every call."""
    losses = [
        forward_rows(session, session.batches.make(FAR + k, 0)).mean() for k in range(batches)
    ]
    return float(torch.stack(losses).mean())


@torch.no_grad()
def row_losses(session: Session, batches: int = 8) -> torch.Tensor:
    """Return [n] losses of instance rows, the same rows, noise and timesteps at every call."""
    rows = []
    for k in range(batches):
        batch = session.batches.make(FAR + k, 0)
        rows.append(forward_rows(session, batch)[~batch.is_prior])
    return torch.cat(rows).double()


def fall(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """Return how far the mean of paired losses fell, and the standard error of that."""
    by = before - after
    return float(by.mean()), float(by.std() / len(by) ** 0.5)


def learn(session: Session, steps: int) -> tuple[float, float]:
    """Train, and return the loss on the fixed batches before and after."""
    before = fixed_loss(session)
    for _ in range(steps):
        train_step(session)
    return before, fixed_loss(session)


def frozen_hashes(session: Session) -> dict[str, str]:
    """Return a hash of every parameter and buffer that does not train, by the base's name."""
    trained = {id(p) for p in session.state.parameters.values()}
    return {n: digest(t) for n, t in tensors(session.model).items() if id(t) not in trained}


def tensors(model: LoadedModel) -> dict[str, Any]:
    """Return all tensors of the parts in memory, by qualified name as before any adapter."""
    out = {}
    for part in model.loaded():
        module = model.parts[part]
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            out[f"{part}.{name}".replace(".base_layer.", ".")] = tensor
    return out


def digest(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's bits."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def shake(parameters: Any, scale: float = 0.05) -> None:
    """Move parameters by fixed noise, as training might have."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
