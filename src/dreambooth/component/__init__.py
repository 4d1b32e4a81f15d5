"""The base of everything a plugin brings: a frozen, strictly checked set of typed options."""

from dreambooth.component.base import (
    AnyJob,
    Component,
    JobPath,
    Location,
    Problem,
    Section,
    escape_variables,
    expand_variables,
    resolve_path,
)
from dreambooth.component.tagged import OneOf

__all__ = [
    "AnyJob",
    "Component",
    "JobPath",
    "Location",
    "OneOf",
    "Problem",
    "Section",
    "escape_variables",
    "expand_variables",
    "resolve_path",
]
