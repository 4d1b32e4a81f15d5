"""One TensorBoard event file that is cut back and appended to across the lives of a run.

tensorboard's own `EventFileWriter` starts a new file each time, so the steps a resumed run does
again would stand in two files; and it writes from a thread, where an error is seen late.
Its record format and messages are used as they are.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from dreambooth.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "events.out.tfevents.0000000000.dreambooth"
HEADER = struct.Struct("<QI")  # length, checksum of the length
FOOTER_BYTES = 4  # checksum of the data


class EventFile:
    """The event file of a run's `tensorboard` folder, cut back to `resume_step` (0: anew)."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".events.out.tfevents.*"):
            leftover.unlink()  # of a rewrite that was killed; TensorBoard would read it too
        path = folder / NAME
        linked = path.is_symlink() or not path.is_file()  # a stranger's folder, or a fresh run
        before = b"" if linked else path.read_bytes()
        kept = cut(before, resume_step)
        # An untouched file can be appended to under the eyes of a running TensorBoard.
        if kept != before or linked:
            write_bytes(path, kept)
        self._file = path.open("ab")
        self._records = RecordWriter(self._file)
        if not kept:
            self._append(Event(wall_time=0.0, file_version="brain.Event:2"))

    def add(self, step: int, wall_time: float, summary: Any) -> None:
        """Append a `Summary` of an optimizer step; `wall_time` in seconds since 1970."""
        self._append(Event(step=step, wall_time=wall_time, summary=summary))

    def sync(self) -> None:
        """Bring the events to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def cut(data: bytes, resume_step: int) -> bytes:
    """Return the records of steps up to `resume_step`; none for a fresh run (0)."""
    if resume_step == 0:
        return b""
    return b"".join(raw for raw, event in records(data) if event.step <= resume_step)


def records(data: bytes) -> Iterator[tuple[bytes, Any]]:
    """Yield each whole record and its `Event`, up to one that a kill tore off.

    The checksum of the data, slow in Python, is left to readers: a torn record shows in its
    length, or in not being a message.
    """
    at = 0
    while at + HEADER.size <= len(data):
        length, checksum = HEADER.unpack_from(data, at)
        end = at + HEADER.size + length + FOOTER_BYTES
        if checksum != masked_crc32c(data[at : at + 8]) or end > len(data):
            return
        try:
            event = Event.FromString(data[at + HEADER.size : end - FOOTER_BYTES])
        except DecodeError:
            return
        yield data[at:end], event
        at = end
