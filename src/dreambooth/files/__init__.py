"""Files written whole or not at all, and strangers' files read with limits."""

from dreambooth.files.reading import MAX_JSON, open_regular, read_limited, read_object
from dreambooth.files.store import cache_root, make_folder, store_trouble
from dreambooth.files.writing import (
    disk_is_full,
    new_folder,
    place_of,
    remove,
    rename,
    sizes,
    sweep,
    sync,
    token,
    unwritable,
    write_bytes,
    write_json,
    write_text,
    write_with,
)

__all__ = [
    "MAX_JSON",
    "cache_root",
    "disk_is_full",
    "make_folder",
    "new_folder",
    "open_regular",
    "place_of",
    "read_limited",
    "read_object",
    "remove",
    "rename",
    "sizes",
    "store_trouble",
    "sweep",
    "sync",
    "token",
    "unwritable",
    "write_bytes",
    "write_json",
    "write_text",
    "write_with",
]
