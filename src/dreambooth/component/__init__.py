"""The base of everything a plugin brings: a frozen, strictly checked set of typed options."""

from dreambooth.component.base import (
    Component,
    JobPath,
    Problem,
    Section,
    escape_variables,
    expand_variables,
    resolve_path,
)

__all__ = [
    "Component",
    "JobPath",
    "Problem",
    "Section",
    "escape_variables",
    "expand_variables",
    "resolve_path",
]
