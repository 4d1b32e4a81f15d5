"""Keeps what the environment holds in secret out of what is shown and written."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

_SECRET = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY|PRIVATE_KEY)$",
    re.IGNORECASE,
)
"""How variables are named that hold a secret: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
"""Name and password in an address."""
SHORTEST = 8
"""Shorter values are no secrets, and stand in too many other words."""


def redacted(text: str) -> str:
    """Return a text in which secrets are replaced: `<HF_TOKEN>`, `https://<login>@host`."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value.strip()) >= SHORTEST:
            for form in (value.strip(), quote(value.strip(), safe="")):
                text = text.replace(form, f"<{name}>")
    return _LOGIN.sub("<login>", text)


def redacted_in(value: Any) -> Any:
    """Return plain data with every text in it redacted, keys aside."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_in(inner) for key, inner in value.items()}
    return [redacted_in(inner) for inner in value] if isinstance(value, list) else value
