"""What other trainers call our options: for people who bring a config or a habit from there."""

from __future__ import annotations

from functools import cache
from pathlib import Path


def reply_to(key: str) -> str:
    """Return what to say of a key of another trainer; nothing where it is none.

    The key may be written as an argument is (`--max-train-steps`). The answers are in
    `foreign_keys.toml`: where the option lives here, or what to do where there is no such option.
    """
    from fnmatch import fnmatchcase

    exact, patterns = _replies()
    name = key.lstrip("-").replace("-", "_")
    if name in exact:
        return exact[name]
    fitting = (pattern for pattern in patterns if fnmatchcase(name, pattern))
    best = max(fitting, key=len, default=None)
    return patterns[best] if best else ""


@cache
def _replies() -> tuple[dict[str, str], dict[str, str]]:
    """Return the answers to single keys and to patterns; read when the first unknown key is met."""
    import tomllib

    text = Path(__file__).with_name("foreign_keys.toml").read_text(encoding="utf-8")
    exact: dict[str, str] = {}
    patterns: dict[str, str] = {}
    for reply in tomllib.loads(text)["reply"]:
        if "called" in reply:
            said = f"here it is called {reply['called']}"
        elif "instead" in reply:
            said = f"not supported; {reply['instead']}"
        else:
            said = reply["told"]
        for key in reply["keys"]:
            (patterns if "*" in key else exact)[key] = said
    return exact, patterns
