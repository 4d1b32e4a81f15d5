"""Models on the Hugging Face hub: the local cache first, a quick look online, never a long wait."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import JobError
from dreambooth_plugins.model.folder.source import PICKLES, Source

if TYPE_CHECKING:
    from dreambooth_plugins.model.folder.part import Part

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_](?:[\w.-]*\w)?", re.ASCII)
"""What the hub takes for a name; it allows 96 characters."""
CONFIG_FILES = ["model_index.json", "*/config.json", "scheduler/scheduler_config.json"]
PROBE_SECONDS = 1.5


def is_hub_id(text: str) -> bool:
    """Say whether `text` has the form of a hub id, `org/name`."""
    no_id = (".safetensors", ".git", *PICKLES)
    return len(text) <= 96 and bool(HUB_ID.fullmatch(text)) and not text.endswith(no_id)


@dataclass(frozen=True)
class HubModel:
    """A repository on the hub at a revision."""

    parts: tuple[Part, ...]
    repo: str
    revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False

    def folder(self, *, fetch: bool) -> Path:
        """Return the local snapshot; `JobError` at once where it is neither cached nor reachable.

        `fetch=False` is content with the configuration (a few kB, downloaded if need be);
        `fetch=True` downloads the weights that are missing, with progress.
        """
        cached = self._cached()
        if cached is not None and self._has_weights(cached):
            return cached
        self._probe(partly=cached is not None)
        if cached is not None and not fetch:
            return cached
        return self._download([*CONFIG_FILES, *self._patterns(weights=fetch)])

    def _cached(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(self.repo, revision=self.revision, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            return None
        return folder if (folder / "model_index.json").is_file() else None

    def _has_weights(self, folder: Path) -> bool:
        source = Source(self.parts, folder, variant=self.variant, allow_pickle=self.allow_pickle)
        try:
            return all(source.weight_files(part.name) for part in self.parts)
        except JobError:  # not there, or only as pickles: the caller asks the hub
            return False

    def _patterns(self, *, weights: bool) -> list[str]:
        patterns: list[str] = []
        for part in self.parts:
            if part.tokenizer:
                patterns += [f"{part.tokenizer}/*.json", f"{part.tokenizer}/merges.txt"]
            if not weights:
                continue
            for dot_variant in dict.fromkeys((f".{self.variant}" if self.variant else "", "")):
                stem = f"{part.name}/{part.stem}{dot_variant}"
                patterns += [f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"]
            patterns += [f"{part.name}/*.safetensors.index*.json"]
            if self.allow_pickle:
                patterns += [f"{part.name}/{part.pickle_stem}.bin"]
        return patterns

    def _download(self, patterns: list[str]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(self.repo, revision=self.revision, allow_patterns=patterns)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise JobError(
                f"{self.repo} could not be downloaded: {error}",
                "try again (what has arrived is kept), or copy the model's folder to this "
                "machine and name its path",
            ) from error

    def _probe(self, *, partly: bool) -> None:
        """Raise `JobError` unless the hub answers within `PROBE_SECONDS` and has the model."""
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        wrong: BaseException | None = TimeoutError("no answer")
        if not constants.HF_HUB_OFFLINE and os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
            wrong = self._ask()
        if wrong is None:
            return
        if isinstance(wrong, GatedRepoError):
            raise JobError(
                f"{self.repo} asks you to accept its licence first",
                f"accept it at {constants.ENDPOINT}/{self.repo}, then `hf auth login`",
            ) from wrong
        if isinstance(wrong, (RepositoryNotFoundError, RevisionNotFoundError)):
            at = f" at revision {self.revision}" if self.revision else ""
            raise JobError(
                f"there is no model {self.repo}{at} on the hub, nor a folder of that name",
                "check the spelling; a private model needs `hf auth login`",
            ) from wrong
        raise JobError(
            f"{self.repo} is {'only partly' if partly else 'not'} in the local hub cache, "
            "and the hub cannot be reached (nor is there a folder of that name)",
            f"where there is a connection: `hf download {self.repo}`; or copy the model's folder "
            "to this machine and set model.source to its path",
        ) from wrong

    def _ask(self) -> BaseException | None:
        # In a thread of its own, since name resolution knows no timeout.
        from huggingface_hub import HfApi

        answer: list[BaseException | None] = []

        def ask() -> None:
            api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            try:
                api.model_info(self.repo, revision=self.revision, timeout=PROBE_SECONDS)
                answer.append(None)
            except Exception as error:  # handed to the caller, who raises it
                answer.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PROBE_SECONDS)
        return answer[0] if answer else TimeoutError("no answer")
