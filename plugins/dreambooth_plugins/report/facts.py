"""How a run was made, a fact a line: what people ask for when they want to repeat it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dreambooth.files import open_regular
from dreambooth.helpers.units import duration, file_size
from dreambooth.runs.folder import rows_of_a_step
from dreambooth_plugins.report.series import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.runs.folder import RunFolder
    from dreambooth_plugins.report.private import Scrub

_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_TAIL = 65536
_LIBRARIES = ("dreambooth-trainer", "python", "torch", "diffusers", "transformers", "peft")


def state_of(manifest: dict[str, Any], steps: int) -> str:
    """Say in a word or two how far the run is."""
    result = manifest.get("result")
    wanted = _table(_table(manifest, "job"), "train").get("steps", "an unknown number")
    if not result:
        return f"stopped or still under way at step {steps} of {wanted}"
    if result.get("stop"):
        return f"ended at step {steps}"
    return "finished"


def facts_of(folder: RunFolder, manifest: dict[str, Any], scrub: Scrub) -> list[tuple[str, str]]:
    """Return label and value of what the run was made with; no paths, no user, no secrets."""
    return [(label, scrub.words(value)) for label, value in _facts(folder, manifest) if value]


def _facts(folder: RunFolder, manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    job, machine = _table(manifest, "job"), _table(manifest, "machine")
    begun, ended = _stamps(folder)
    if ended:
        yield "Made on", f"{ended.day} {ended:%B %Y}"
    if seconds := sum(_seconds(folder)):
        yield "Training took", duration(seconds)
    if begun and ended and (ended - begun).total_seconds() >= 1:
        yield "From start to end", duration((ended - begun).total_seconds())
    yield "Device", _device(machine)
    model = _table(job, "model")
    yield "Base model", _last(str(model.get("source", "")))
    yield "Revision", str(model.get("revision") or "")
    yield from _seen(manifest, job)
    yield "Seed", str(_table(job, "train").get("seed", ""))
    trainable = _table(manifest, "trainable").items()
    parts = (f"{n.replace('_', ' ')} {count:,}" for n, count in trainable if isinstance(count, int))
    yield "Trained weights", ", ".join(parts)
    for part, digest in _table(manifest, "model").items():
        yield f"Hash of {part.replace('_', ' ')}", str(digest)[:16]
    if result := manifest.get("result"):
        yield "Why it ended", str(result.get("stop") or "")
        yield "Kept", str((result.get("kept") or {}).get("why") or "")
    versions = _table(manifest, "versions")
    known = (f"{name} {versions[name]}" for name in _LIBRARIES if name in versions)
    yield "Versions", ", ".join(known)
    yield "Plugins", ", ".join(_plugins(manifest))


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """Return what lies below a key; empty where that is no table: a manifest may be damaged."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _seen(manifest: dict[str, Any], job: dict[str, Any]) -> Iterator[tuple[str, str]]:
    images = len(manifest.get("images") or ())
    held = manifest.get("held_out")
    trained = images - (len(held) if isinstance(held, list) else 0)
    steps = _table(manifest, "result").get("steps")
    yield "Photographs", str(images or "")
    if job and steps and trained > 0:
        times = steps * rows_of_a_step(job, manifest.get("processes", 1)) / trained
        yield "Each was looked at", f"about {times:.0f} times"


def _last(source: str) -> str:
    return f"…/{source.rstrip('/').rpartition('/')[2]}" if source[:1] in {"/", "~"} else source


def _device(machine: dict[str, Any]) -> str:
    name = str(machine.get("device_name") or machine.get("device") or "")
    name = "CPU" if name == "cpu" else name
    return ", ".join(filter(None, (name, str(machine.get("precision") or ""))))


def _plugins(manifest: dict[str, Any]) -> list[str]:
    """Name the plugins that took part with versions; the trainer's own are one."""
    found: dict[str, str] = {}
    for row in manifest.get("plugins") or ():
        maker = row.get("distribution") or row.get("name")
        found[str(maker)] = str(row.get("version") or "")
    return [f"{name} {version}".strip() for name, version in found.items()][:32]


def _seconds(folder: RunFolder) -> Iterator[float]:
    for line in lines_of(folder.timings):
        value = line.get("seconds")
        if isinstance(value, int | float) and 0 <= value < 1e9:
            yield float(value)


def _stamps(folder: RunFolder) -> tuple[datetime | None, datetime | None]:
    """Return the times of the log's first and last line."""
    try:
        with open_regular(folder.log, follow=False) as file:
            head = file.readline(4096)
            file.seek(max(0, folder.log.stat().st_size - _TAIL))
            tail = file.read(_TAIL).splitlines()
    except OSError:
        return None, None
    last = next((line for line in reversed(tail) if _STAMP.match(line)), b"")
    return _time(head), _time(last)


def _time(line: bytes) -> datetime | None:
    found = _STAMP.match(line)
    try:
        return datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def files_of(manifest: dict[str, Any], scrub: Scrub) -> list[tuple[str, str]]:
    """Return name and size of the exported files, the largest first."""
    files: dict[str, int] = (manifest.get("result") or {}).get("files") or {}
    largest = sorted(files.items(), key=lambda pair: (-pair[1], pair[0]))[:40]
    return [(scrub.words(name), file_size(size)) for name, size in largest]
