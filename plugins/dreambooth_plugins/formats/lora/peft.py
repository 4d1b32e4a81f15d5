"""PEFT's configuration of an adapter: beside a file, or in its header.

Everything a stranger may say in it is known without reading a tensor, so `dbt validate` says it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth.files import read_object
from dreambooth.helpers.text import quoted
from dreambooth_plugins.formats.lora.plausible import DAMAGED, MAX_RANK, checked_alpha

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dreambooth.interfaces import Artifact

CONFIG, METADATA = "adapter_config.json", "lora_adapter_metadata"
FILE = "adapter_model.safetensors"
"""PEFT's name of a file of adapters, beside its configuration."""
_PLAIN = re.compile(r"[\w.-]*")


class Alphas:
    """The alphas of one part in PEFT's configuration, which a stranger wrote.

    PEFT takes the names in `alpha_pattern` for regular expressions; here they are names of
    modules, or ends of them: what a stranger's expression costs has no bound.
    """

    def __init__(self, where: str, config: Any) -> None:
        if not isinstance(config, dict):
            raise JobError(f"{where} is {quoted(config)}, and no configuration", DAMAGED)
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise JobError(f"{where}: alpha_pattern is {quoted(patterns)}, no mapping", DAMAGED)
        default = config.get("lora_alpha", config.get("alpha", 8))  # LoHa and LoKr: alpha
        self.default = checked_alpha(f"{where}: lora_alpha", default)
        rooted = config.get("use_rslora") or False
        if not isinstance(rooted, bool):
            raise JobError(f"{where}: use_rslora is {quoted(rooted)}, not true or false", DAMAGED)
        self.by_rank_root = rooted
        rank = config.get("r")
        self.rank = rank if isinstance(rank, int) and 0 < rank <= MAX_RANK else None
        self._named: dict[str, tuple[int, float]] = {}
        for order, (pattern, value) in enumerate(patterns.items()):
            alpha = checked_alpha(f"{where}: alpha_pattern of {quoted(pattern)}", value)
            self._named.setdefault(_plain_name(where, pattern), (order, alpha))

    def of(self, module: str) -> float:
        """Return a module's alpha: that of the first name that is its own or ends its own."""
        pieces = module.split(".")
        ends = (".".join(pieces[i:]) for i in range(len(pieces)))
        return min((self._named[e] for e in ends if e in self._named), default=(0, self.default))[1]


def _plain_name(where: str, pattern: str) -> str:
    """Return the module that an expression names, as the libraries write them: `^a\\.b$`."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not _PLAIN.fullmatch(name):
        raise JobError(
            f"{where}: alpha_pattern has the expression {quoted(pattern)}",
            "names of modules can be taken over, regular expressions cannot",
        )
    return name.removeprefix("text_model.")


def alphas(file: Path, metadata: Mapping[str, str], parts: Iterable[str]) -> dict[str, Alphas]:
    """Return a file's alphas by part: from the configuration beside it, or in its header.

    `parts` are those the file has adapters for.
    """
    beside = file.with_name(CONFIG)
    if beside.exists():
        try:
            return dict.fromkeys(parts, Alphas(str(beside), read_object(beside)))
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise JobError(f"{beside} cannot be read: {said}", DAMAGED) from error
    where = f"{file}: {METADATA}"
    try:
        options = json.loads(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        raise JobError(f"{where} in its header is no JSON", DAMAGED) from None
    if not isinstance(options, dict):
        raise JobError(f"{where} in its header is no mapping", DAMAGED)
    config: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        part, _, option = name.partition(".")
        config.setdefault(part, {})[option] = value
    return {part: Alphas(f"{where} of {part}", found) for part, found in config.items()}


def metadata(artifact: Artifact) -> dict[str, Any]:
    """Return `<part>.<option of peft.LoraConfig>` for each part: what a loader needs, no more.

    Loaders hand all of it to LoraConfig, so an option that only some versions know would make
    the file unreadable for the others.
    """
    out: dict[str, Any] = {}
    for part, adapter in artifact.metadata["adapters"].items():
        facts: Mapping[str, Mapping[str, Any]] = adapter["modules"]
        ranks, alphas = ([f[name] for f in facts.values()] for name in ("rank", "alpha"))
        rank, alpha = (max(sorted(set(v)), key=v.count) for v in (ranks, alphas))
        options = {
            "r": rank,
            "lora_alpha": _whole(alpha),
            "rank_pattern": {m: f["rank"] for m, f in facts.items() if f["rank"] != rank},
            "alpha_pattern": {
                m: _whole(f["alpha"]) for m, f in facts.items() if f["alpha"] != alpha
            },
            "target_modules": sorted(facts),
            "use_dora": adapter["method"]["kind"] == "dora",
            "use_rslora": adapter["method"]["rank_stabilized"],
        }
        out |= {f"{part}.{name}": value for name, value in options.items()}
    return out


def _whole(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha
