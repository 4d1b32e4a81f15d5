"""Keeps what is nobody else's business out of a page that people send to each other."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from dreambooth.helpers.text import flat, redacted
from dreambooth_plugins.report.document import MAX_TEXT

_HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:[\\/]Users)[\\/][^\s\\/'\"]+|(?<![\w/.])/root(?!\w)")
_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/'\":;,()]+[\\/])+[^\s\\/'\":;,()]*")
_ABSOLUTE = re.compile(r"~?/|[A-Za-z]:[\\/]|\\\\")
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|AKIA|xox[abp]-)[A-Za-z0-9_-]{12,}")


class Scrub:
    """Makes texts fit for other people's eyes: no folders of this machine, users or tokens."""

    def __init__(self, *roots: Path) -> None:
        """Take the folders that are known to be private, the longest first."""
        known = {str(root.absolute()) for root in roots} | {_home()}
        self._roots = sorted((r for r in known if len(r) > 1), key=len, reverse=True)

    def words(self, text: str) -> str:
        """Return prose (a prompt, a caption, a sentence) without the paths that are known."""
        for root in self._roots:
            text = text.replace(root, "…")
        text = _TOKEN.sub("<token>", redacted(_HOME.sub("~", text)))
        return clipped(flat(_PATH.sub(_last, text)))

    def value(self, value: Any) -> str:
        """Return an option's value as text; an absolute path keeps its last part alone."""
        if isinstance(value, str) and _ABSOLUTE.match(value):
            return self.words(f"…/{PureWindowsPath(value).name}")
        if isinstance(value, dict):
            inside = ", ".join(f"{k}: {self.value(v)}" for k, v in value.items())
            return clipped(f"{{{inside}}}" if inside else "none")
        if isinstance(value, list | tuple):
            return clipped(", ".join(self.value(v) for v in value) or "none")
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return f"{value:g}"
        return "none" if value is None else self.words(str(value)) or '""'


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # a user without a home
        return ""


def _last(found: re.Match[str]) -> str:
    return f"…/{PureWindowsPath(found[0]).name}"


def clipped(text: str, limit: int = MAX_TEXT) -> str:
    """Return a text of at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
