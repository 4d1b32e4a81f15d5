"""What the docstring below an option says: read from the source when somebody asks.

pydantic can do this at class creation (`use_attribute_docstrings`), which parses every component's
source at every start; `dbt validate` does not need it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaValue


@cache
def option_docs(cls: type[BaseModel]) -> dict[str, str]:
    """Return option name -> description, inherited options included.

    A description given to `Field` wins over a docstring. Classes without source text (typed into
    an interpreter) have the descriptions given to `Field` alone.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__annotations__" in vars(base) and hasattr(base, "model_fields"):
            docs |= _own_docs(base)
    given = {n: f.description for n, f in cls.model_fields.items() if f.description}
    return {name: text for name, text in {**docs, **given}.items() if name in cls.model_fields}


def add_docs(cls: type[BaseModel], schema: JsonSchemaValue) -> JsonSchemaValue:
    """Put the descriptions of a class's options into its JSON Schema, and return that."""
    docs = option_docs(cls)
    for name, option in schema.get("properties", {}).items():
        if name in docs:
            option["description"] = docs[name]
    return schema


def _own_docs(cls: type) -> dict[str, str]:
    return _module_docs(cls.__module__).get(cls.__qualname__, {})


@cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    """Return class name -> option -> docstring of a module, parsed once."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return {}  # no source text: typed into an interpreter, or made at run time
    found: dict[str, dict[str, str]] = {}

    def visit(body: list[ast.stmt], path: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[path + node.name] = _class_docs(node)
                visit(node.body, f"{path}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                visit(node.body, f"{path}{node.name}.<locals>.")

    visit(ast.parse(source).body, "")
    return found


def _class_docs(node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field, below in pairwise(node.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        value = below.value if isinstance(below, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            docs[field.target.id] = inspect.cleandoc(value.value)
    return docs
