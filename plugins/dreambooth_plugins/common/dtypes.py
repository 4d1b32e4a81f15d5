"""Options that several formats have."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp32", "fp16", "bf16"]
"""Precision of stored weights."""
