"""Files of offline W&B runs, read without W&B's reader."""

from __future__ import annotations

import json
import struct
import zlib

BLOCK, HEADER = 32768, struct.Struct("<IHB")


def records(path):
    """Yield the messages of a `.wandb` file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:
            at += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        assert checksum == zlib.crc32(bytes([kind]) + body)
        parts += body
        at += HEADER.size + length
        if kind in (1, 4):  # whole, or the last of several
            yield Record.FromString(parts)
            parts = b""


def history(path):
    """Return the logged rows, without wandb's own entries."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            rows.append({k: v for k, v in items.items() if not k.startswith("_")})
    return rows
