"""The policies whose contract `test_policies.py` checks, with jobs that show it quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORD = "<my-dog>"
BOTH = ["unet", "text_encoder"]
EMOJI = "builtin:emoji-64"


@dataclass(frozen=True)
class Case:
    """A policy, and what a small model needs to show what it does."""

    freezing: dict[str, Any]
    lr: float = 3e-3
    own: dict[str, float] = field(default_factory=dict)
    """Learning rates of single parts."""
    export: str = "diffusers"
    """A format that holds the whole model."""
    model: str = "builtin:tiny"
    emoji_lr: float = 3e-4
    """Learning rate on the embedded base."""


CASES = {
    "components": Case(
        {"kind": "components", "train": BOTH}, 1e-3, {"text_encoder": 5e-4}, emoji_lr=1e-4
    ),
    "adapter, lora": Case(
        {"kind": "adapter", "train": BOTH, "method": {"kind": "lora", "rank": 4}},
        1e-2, {"text_encoder": 5e-3}, "merged", emoji_lr=1e-3,
    ),
    "adapter, dora": Case(
        {"kind": "adapter", "method": {"kind": "dora", "rank": 4}},
        1e-2, {"unet": 8e-3}, "merged", emoji_lr=1e-3,
    ),
    "adapter, lokr": Case(
        {"kind": "adapter", "method": "lokr"}, 1e-2, {"unet": 8e-3}, "merged", emoji_lr=3e-3
    ),
    "adapter, oft": Case(
        {"kind": "adapter", "method": {"kind": "oft", "block_size": 8}},
        1e-2, {"unet": 8e-3}, "merged", emoji_lr=1e-3,
    ),
    "components_and_token": Case(
        {"kind": "components_and_token", "train": BOTH}, 1e-3, {"token": 2e-2}, emoji_lr=1e-4
    ),
    "token": Case({"kind": "token"}, 5e-2, {}, "merged", emoji_lr=1e-2),
    "token of three rows": Case({"kind": "token", "vectors": 3}, 5e-2, {}, "merged", emoji_lr=1e-2),
    "pivotal, together": Case(
        {"kind": "pivotal", "train": BOTH}, 1e-2, {"token": 2e-2}, "merged", emoji_lr=1e-3
    ),
    "pivotal, one after the other": Case(
        {"kind": "pivotal", "until": {"token": 0.5}, "start": {"unet": 0.5}},
        1e-2, {"token": 2e-2}, "merged", emoji_lr=1e-3,
    ),
    "cross_attention": Case({"kind": "cross_attention"}, 1e-2, {"unet": 8e-3}),
    "patterns": Case(
        {"kind": "patterns", "train": ["unet.*.attn?.*", "text_encoder.*layer_norm*"],
         "freeze": ["*.bias"]},
        1e-2, {"text_encoder": 5e-3},
    ),
    "block_preset": Case(
        {"kind": "block_preset", "blocks": ["content"]},
        1e-3, {"unet": 8e-4}, "merged", EMOJI, emoji_lr=1e-3,
    ),
}  # fmt: skip


def sections(case: Case, **more: Any) -> dict[str, Any]:
    """Return a job's sections for a case; those of `more` are merged into them."""
    given: dict[str, Any] = {
        "model": {"kind": "stable_diffusion", "source": case.model},
        "subject": {"identifier": WORD, "class_noun": "dog"},
        "freezing": dict(case.freezing),
        "prior": "none",
        "optimizer": {"kind": "adamw", "lr": case.lr},
        "exports": [case.export],
    }
    if case.model == EMOJI:
        given["data"] = {"resolution": 64}
    for name, value in more.items():
        given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    return given
