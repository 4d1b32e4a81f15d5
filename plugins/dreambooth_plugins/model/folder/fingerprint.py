"""Content hashes of model parts: cache keys that follow the weights, not the file names."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.files import write_json
from dreambooth_plugins.model.folder.clip_vocabulary import MERGES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from dreambooth.interfaces import Progress
    from dreambooth_plugins.model.folder.source import Source

    ShowProgress = Callable[[str, int], AbstractContextManager[Progress]]

BLOCK = 1 << 24
"""Bytes read at once, and the unit of the progress bar."""
_NOISE = ("_diffusers_version", "_name_or_path", "transformers_version")


def part_fingerprint(source: Source, part: str, memo: Path, progress: ShowProgress) -> str:
    """Hash what a part is made of: its configuration and its weight files' content.

    A text encoder's hash covers its tokenizer as well, since embeddings depend on both. `memo`
    is a JSON file that remembers hashes by path and stamp (see `file_hash`).
    """
    config = source.part_config(part)
    plain = {name: value for name, value in config.items() if name not in _NOISE}
    digest = hashlib.sha256(f"{part}\n{json.dumps(plain, sort_keys=True)}".encode())
    files = list(source.weight_files(part))
    if tokenizer := source.part(part).tokenizer:
        files += sorted(path for path in (source.config / tokenizer).iterdir() if path.is_file())
        files += [MERGES_FILE] if source.file is not None else []
    for path in files:
        digest.update(file_hash(path, memo, progress).encode())
    return digest.hexdigest()


def file_hash(path: Path, memo: Path, progress: ShowProgress) -> str:
    """Return the SHA-256 of a file, from `memo` while the file is the one that was hashed.

    Its stamp: inode, size, and the times of the last change of content and of anything. Copying
    tools give another file the same size and modification time; nobody can set the last one.
    """
    path = path.resolve()
    stamp = _stamp(path)
    entry = _read_memo(memo).get(str(path))
    if isinstance(entry, list) and entry[:-1] == stamp:
        return str(entry[-1])
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file, progress(f"hash {path.name}", -(-size // BLOCK)) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.advance()
    if _stamp(path) != stamp:  # replaced meanwhile: which of the two was hashed is not known
        return digest.hexdigest()
    alive = {name: value for name, value in _read_memo(memo).items() if Path(name).exists()}
    with suppress(OSError):  # it saves time only
        write_json(memo, {**alive, str(path): [*stamp, digest.hexdigest()]})
    return digest.hexdigest()


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_memo(memo: Path) -> dict[str, Any]:
    try:
        data = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # absent or damaged: files are hashed again, nothing is lost
    return data if isinstance(data, dict) else {}
