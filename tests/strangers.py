"""Files of strangers, spoilt at random and taken through the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from dreambooth import cli
from spoiling import ODD, edits, spoil, where

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS, BYTES = 10.0, 2 << 30
"""What no file of a stranger may take, in seconds of a processor: the machine may be busy."""
WAITING = 120.0
"""Seconds by the clock: what only waits takes no processor."""
DEEP = '{"a":' * 200 + "1" + "}" * 200
TEXTS = ["", "{", "[]", "null", "[" * 50_000, "9" * 5000, DEEP, "{}", '{"\\ud800": 1}', "\ufeff{}"]
share = st.floats(0, 1, exclude_max=True)
Change = tuple[str, int, float, Any]
"""How, which file (modulo their number), where in it, and with what."""
TENSOR_CHANGES = [
    "drop", "rename", "reshape", "scalar", "empty", "int", "half", "rows", "nan", "nan", "again",
    "wide", "swap", "double",
]  # fmt: skip
raw = st.one_of(
    st.tuples(st.just("flip"), where, share, st.integers(0, 7)),
    st.tuples(st.just("cut"), where, share, st.none()),
    st.tuples(st.just("delete"), where, share, st.none()),
    st.tuples(st.just("bytes"), where, share, st.binary(max_size=40)),
    st.tuples(st.just("text"), where, share, st.sampled_from(TEXTS)),
    st.tuples(st.just("special"), where, share,
              st.sampled_from(["pipe", "zero", "folder", "loop", "nothing", "huge"])),
)  # fmt: skip
inside = st.one_of(
    st.tuples(st.just("json"), where, share, edits),
    st.tuples(st.just("json"), where, share, edits),
    st.tuples(st.just("value"), where, share, st.sampled_from([*ODD, 10**7, 10**9, 1e9, -1e9])),
    st.tuples(st.just("value"), where, share, st.sampled_from([*ODD, 10**7, 10**9, 1e9, -1e9])),
)
tensors = st.tuples(st.just("tensors"), where, share, st.sampled_from(TENSOR_CHANGES))


@dataclass
class Tally:
    """What became of the files that were tried."""

    seen: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    longest: float = 0.0

    @property
    def peak(self) -> int:
        """The most memory this process ever took, in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.seen.items()))
        return f"{counts}; slowest {self.slowest:.2f} s, peak {self.peak >> 20} MiB"

    def check(self) -> None:
        """Hold what was seen against the limits."""
        assert self.slowest < SECONDS
        assert self.longest < WAITING
        assert self.peak < BYTES


def dbt(*args: object) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and all that it said."""
    said = io.StringIO()
    with tempfile.TemporaryFile() as file, to_file(file.fileno()):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "argv", ["dbt", *map(str, args)])
            with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
                cli.main()
        file.seek(0)
        past = file.read().decode(errors="surrogateescape")
    return int(ended.value.code or 0), said.getvalue() + past


@contextlib.contextmanager
def to_file(number: int) -> Iterator[None]:
    """Send to a file what libraries write past Python's streams."""
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(number, stream)
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def try_job(job: Path, tally: Tally, *options: str) -> str:
    """Take a job through `validate` and `--dry-run`: a located error or a good plan, in time."""
    outcome = "good"
    for name, command in (("validate", ["validate"]), ("plan", ["run", "--dry-run", *options])):
        began, busy = time.monotonic(), time.process_time()
        code, said = dbt(*command, job)
        tally.slowest = max(tally.slowest, time.process_time() - busy)
        tally.longest = max(tally.longest, time.monotonic() - began)
        assert "Traceback" not in said, said
        assert "is a fault of" not in said, said
        assert code in {0, 1, 2}, said
        assert all(c.isprintable() or c in "\n\t" for c in said)
        if code:
            assert "error: " in said or "job.yaml" in said
            assert len(said.strip()) > 20
            outcome = f"refused by {name}"
            break
    tally.seen[outcome] += 1
    return outcome


MANY_BYTES = 1 << 28


def apply(files: list[Path], changes: list[Change]) -> None:
    """Spoil some of the files; one that is a hard link is written anew."""
    for how, number, place, what in changes:
        file = files[number % len(files)]
        if not file.is_file() or file.is_symlink():
            continue
        if how == "special":
            make_special(file, what)
            continue
        if file.stat().st_size > MANY_BYTES:  # what an earlier change made of it
            continue
        data = file.read_bytes()
        file.unlink()
        if how != "delete":
            file.write_bytes(spoilt(data, how, place, what))


def make_special(file: Path, what: str) -> None:
    """Put something in a file's place that is none."""
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "huge":
        file.touch()
        os.truncate(file, 1 << 36)
    else:
        links = {"zero": "/dev/zero", "loop": file.name, "nothing": "nowhere"}
        file.symlink_to(links[what])


def spoilt(data: bytes, how: str, place: float, what: Any) -> bytes:
    """Return a file's bytes, changed."""
    at = int(place * len(data))
    if how == "flip" and data:
        return data[:at] + bytes([data[at] ^ 1 << what]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "bytes":
        return what
    if how == "text":
        return what.encode("utf-8", "surrogatepass")
    if how in {"json", "value"}:
        return with_json(data, lambda found: spoil(found, drawn(found, how, place, what)))
    if how == "tensors":
        return with_tensors(data, place, what)
    return data


def drawn(found: Any, how: str, place: float, what: Any) -> Any:
    return what if how == "json" else [("put", int(place * 10**6), what, 0)]


def with_json(data: bytes, change: Any) -> bytes:
    """Change a JSON file, or the header of a safetensors file, whose length then fits again."""
    binary = len(data) > 8 and data[8:9] == b"{"
    length = struct.unpack("<Q", data[:8])[0] if binary else 0
    try:
        found = json.loads(data[8 : 8 + length] if binary else data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(found, dict):
        return data
    nested = found.get("__metadata__") if binary else None
    if isinstance(nested, dict) and "lora_adapter_metadata" in nested and len(data) % 2:
        with contextlib.suppress(ValueError, TypeError):
            options = change(json.loads(nested["lora_adapter_metadata"]))
            nested["lora_adapter_metadata"] = json.dumps(options)
    else:
        found = change(found)
    text = json.dumps(found).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :] if binary else text


def with_tensors(data: bytes, place: float, how: str) -> bytes:
    """Return a good safetensors file with one tensor changed."""
    import torch
    from safetensors.torch import load, save

    try:
        found = load(data)
    except Exception:  # spoilt already
        return data
    if not found:
        return data
    name = sorted(found)[int(place * len(found))]
    tensor = found.pop(name).clone()
    changed = {
        "rename": {name + "x": tensor},
        "reshape": {name: tensor.reshape(-1, 1)},
        "scalar": {name: torch.tensor(1.0)},
        "empty": {name: torch.zeros(0, *tensor.shape[1:])},
        "int": {name: tensor.to(torch.int32)},
        "half": {name: tensor.half()},
        "rows": {name: torch.cat([tensor, tensor]) if tensor.dim() else tensor[None].repeat(3)},
        "nan": {name: tensor.float() * float("nan")},
        "swap": {name.replace("to_q", "to_v").replace("to_k", "norm"): tensor},
        "double": {name: tensor.double()},
        "again": {name: tensor, f"unet.{name}": tensor.clone()},
        "wide": {name: tensor[None].contiguous()},
    }
    return save({**found, **changed.get(how, {})})
