"""YAML 1.2 (core schema) text to plain data, keeping the place of every key and value.

Works on the parser's events with a stack of its own, so neither nesting nor aliases can exhaust
memory or the interpreter's stack: limits are checked while events arrive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml import events as ev
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scanner import Scanner

from dreambooth.errors import JobError
from dreambooth.helpers.text import quoted
from dreambooth.jobs.scalars import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.component import Location

MAX_DEPTH = 64
MAX_NODES = 10_000
NOT_TEXT = re.compile("[\0\ud800-\udfff]")
"""What no text file holds: NUL, and halves of characters (bytes of a name that are not UTF-8)."""
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""A character beyond U+FFFF as JSON escapes it: a job may be written by a JSON library."""
_SYNTAX = (
    (r"found character '\\t'", "a tab cannot indent", "use spaces"),
    (
        r"found character '([@`%])'",
        "a value cannot begin with {0}",
        "put the value in quotes",
    ),
    (
        r"mapping values are not allowed",
        'a ":" is not expected here',
        'check the indentation, and quote a value that holds ": "',
    ),
    (r"could not find expected ':'", 'a ":" is missing', 'a key is written as "key: value"'),
    (r"unexpected end of stream", "a quote is not closed", "{opened}"),
    (r"expected ',' or '([\]}])'", 'a "{0}" or "," is missing', "{opened}"),
    (
        r"expected <block end>",
        "does not fit the lines above",
        "keys of one mapping begin at the same column",
    ),
    (r"sequence entries are not allowed", 'a "-" is not expected here', "check the indentation"),
    (
        r"unknown escape character|expected escape sequence",
        'a "\\" in double quotes means something else',
        "use single quotes or, in a path, forward slashes",
    ),
    (r"undefined tag handle", "a tag", "tags are not allowed in a job"),
    (r"expected the node content", "a value is missing", ""),
)


class Mark(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


class YamlProblem(JobError):
    """One fault of a YAML text."""

    def __init__(self, mark: Mark | None, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.mark = mark


@dataclass(slots=True)
class Node:
    """A value of the text: a scalar, a list of nodes, or a list of (key, value) pairs."""

    mark: Mark
    value: Any = None
    items: list[Node] | None = None
    pairs: list[tuple[Node, Node]] | None = None
    flow: bool = True
    key: Node | None = None
    """While a mapping is open: the key whose value comes next."""
    closed: bool = True
    size: int = 1
    depth: int = 1

    def add(self, child: Node) -> None:
        """Append a finished or just opened node as item, key or value."""
        if self.items is not None:
            self.items.append(child)
        elif self.key is None:
            self.key = child
        else:
            assert self.pairs is not None
            self.pairs.append((self.key, child))
            self.key = None

    def close(self) -> None:
        """Count what lies below, aliases expanded; `YamlProblem` beyond the limits."""
        below = self.items if self.items is not None else [n for p in self.pairs or () for n in p]
        self.size = 1 + sum(n.size for n in below)
        self.depth = 1 + max((n.depth for n in below), default=0)
        self.closed = True
        if self.size > MAX_NODES:
            raise YamlProblem(self.mark, f"more than {MAX_NODES} values, aliases expanded")
        if self.depth > MAX_DEPTH:
            raise too_deep(self.mark)


@dataclass
class Composed:
    """Plain data of a text and where everything stands."""

    data: Any = None
    flow: bool = True
    """Whether the top is a scalar or is written in brackets."""
    empty: bool = False
    keys: dict[Location, Mark] = field(default_factory=dict)
    values: dict[Location, Mark] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)


def compose(text: str) -> Composed:
    """Parse one document. Raises the first syntax fault; faulty keys are collected."""
    root = _Composer().compose(text)
    if root is None:
        return Composed(empty=True)
    composed = Composed(flow=root.flow)
    composed.data = _build(root, (), composed)
    return composed


def too_deep(mark: Mark) -> YamlProblem:
    """Return the fault of a text that nests too deep."""
    return YamlProblem(mark, f"nested deeper than {MAX_DEPTH} levels")


class _Scanner(Scanner):
    # The scanner looks up to 1024 characters ahead, at a cost that is the square of the depth.
    def fetch_flow_collection_start(self, *args: Any, **kwargs: Any) -> None:
        super().fetch_flow_collection_start(*args, **kwargs)
        if len(self.flow_context) > MAX_DEPTH:
            raise too_deep(_mark(self.reader.get_mark()))


class _Composer:
    def __init__(self) -> None:
        self.root: Node | None = None
        self.open: list[Node] = []
        self.anchors: dict[str, Node] = {}
        self.documents = self.count = 0

    def compose(self, text: str) -> Node | None:
        for event in _events(text):
            if isinstance(event, ev.DocumentStartEvent):
                self._document(event)
            elif isinstance(event, ev.AliasEvent):
                self._attach(self._alias(event), _mark(event.start_mark))
            elif isinstance(event, ev.ScalarEvent):
                self._attach(self._named(event, _scalar(event)))
            elif isinstance(event, ev.CollectionStartEvent):
                self._start(event)
            elif isinstance(event, ev.CollectionEndEvent):
                self.open.pop().close()
        return self.root

    def _document(self, event: ev.DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            hint = "keep one job a file, without `---` between parts"
            raise YamlProblem(_mark(event.start_mark), "a second document begins here", hint)
        if event.version is not None and tuple(event.version) != (1, 2):
            raise YamlProblem(_mark(event.start_mark), "job files are YAML 1.2, not 1.1")

    def _start(self, event: ev.CollectionStartEvent) -> None:
        node = Node(_mark(event.start_mark), flow=bool(event.flow_style), closed=False)
        if isinstance(event, ev.MappingStartEvent):
            node.pairs = []
        else:
            node.items = []
        self._attach(self._named(event, node))
        self.open.append(node)
        if len(self.open) > MAX_DEPTH:
            raise too_deep(node.mark)

    def _named(self, event: ev.NodeEvent, node: Node) -> Node:
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise YamlProblem(node.mark, f"tag {quoted(str(tag))}", "tags are not allowed in a job")
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: ev.AliasEvent) -> Node:
        node = self.anchors.get(event.anchor)
        if node is None:
            text = f"alias *{event.anchor} has no anchor &{event.anchor} above it"
            raise YamlProblem(_mark(event.start_mark), text, "quote the value if it is a text")
        if not node.closed:
            raise YamlProblem(_mark(event.start_mark), f"alias *{event.anchor} contains itself")
        return node

    def _attach(self, node: Node, at: Mark | None = None) -> None:
        self.count += 1
        if self.count > MAX_NODES:
            raise YamlProblem(at or node.mark, f"more than {MAX_NODES} values")
        if self.open:
            self.open[-1].add(node)
        else:
            self.root = node


def _events(text: str) -> Iterator[Any]:
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _Scanner
    try:
        yield from yaml.parse(text)
    except MarkedYAMLError as error:
        unclosed = re.search("end of stream|stream end", str(error.problem))
        mark = (unclosed and error.context_mark) or error.problem_mark or error.context_mark
        raise YamlProblem(_mark(mark) if mark else None, *_plain_words(error)) from None
    except (YAMLError, ValueError, OverflowError) as error:  # a bad escape such as "\UFFFFFFFF"
        raise YamlProblem(None, f"not valid YAML: {str(error).splitlines()[0]}") from None


def _plain_words(error: MarkedYAMLError) -> tuple[str, str]:
    """Return message and hint for a syntax error."""
    problem = str(error.problem or error.context)
    for pattern, message, hint in _SYNTAX:
        if found := re.search(pattern, problem):
            mark = error.context_mark
            opened = f"it was opened on line {mark.line + 1}" if mark else ""
            return f"not valid YAML: {message.format(*found.groups())}", hint.format(opened=opened)
    return f"not valid YAML: {problem}", ""


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


def _joined(pair: re.Match[str]) -> str:
    return pair.group().encode("utf-16", "surrogatepass").decode("utf-16")


def _scalar(event: ev.ScalarEvent) -> Node:
    mark = _mark(event.start_mark)
    text = _PAIR.sub(_joined, event.value)
    if found := NOT_TEXT.search(text):
        raise YamlProblem(mark, f"U+{ord(found.group()):04X} is not a character of a text")
    if event.style is not None:  # quoted, or a block scalar
        return Node(mark, text)
    try:
        return Node(mark, resolve(event.value))
    except ValueError as error:
        raise YamlProblem(mark, f"{quoted(event.value)} is {error}") from None


def _build(node: Node, at: Location, out: Composed) -> Any:
    out.values.setdefault(at, node.mark)
    if node.items is not None:
        return [_build(item, (*at, i), out) for i, item in enumerate(node.items)]
    if node.pairs is None:
        return node.value
    data: dict[str, Any] = {}
    for key, value in node.pairs:
        if problem := _bad_key(key, (*at, key.value), data, out):
            out.problems.append(problem)
            continue
        out.keys[*at, key.value] = key.mark
        data[key.value] = _build(value, (*at, key.value), out)
    return data


def _bad_key(key: Node, at: Location, seen: dict[str, Any], out: Composed) -> YamlProblem | None:
    if key.items is not None or key.pairs is not None:
        return YamlProblem(key.mark, "a key must be text, not a list or a mapping")
    if not isinstance(key.value, str):
        hint = "keys are text: put it in quotes, or write the key's name"
        return YamlProblem(key.mark, f"key {quoted(key.value)} is not text", hint)
    if key.value == "<<":
        hint = "merge keys are not part of YAML 1.2: write the keys out"
        return YamlProblem(key.mark, 'key "<<"', hint)
    if key.value in seen:
        line = out.keys[at].line
        return YamlProblem(key.mark, f"duplicate key {quoted(key.value)}", f"first on line {line}")
    return None
