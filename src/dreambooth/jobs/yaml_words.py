"""The YAML parser's complaints in plain words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruamel.yaml.error import MarkedYAMLError

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
    (r"unknown escape character", "unknown escape in double quotes", "use single quotes"),
    (r"undefined tag handle", "a tag", "tags are not allowed in a job"),
    (r"expected the node content", "a value is missing", ""),
)


def plain_words(error: MarkedYAMLError) -> tuple[str, str]:
    """Return message and hint for a syntax error."""
    problem = str(error.problem or error.context)
    for pattern, message, hint in _SYNTAX:
        if found := re.search(pattern, problem):
            mark = error.context_mark
            opened = f"it was opened on line {mark.line + 1}" if mark else ""
            return f"not valid YAML: {message.format(*found.groups())}", hint.format(opened=opened)
    return f"not valid YAML: {problem}", ""
