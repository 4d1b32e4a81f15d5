"""The store: the user's cache folder, which all jobs share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dreambooth.errors import JobError


def cache_root() -> Path:
    """Return the store's folder: `DREAMBOOTH_CACHE`, or the user's cache folder.

    `JobError` for a user without a home: containers run under numbers that no one has a name for.
    """
    try:
        if named := os.environ.get("DREAMBOOTH_CACHE"):
            return Path(named).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/dreambooth"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "dreambooth" / "cache"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambooth"
    except RuntimeError as error:
        raise JobError(
            "there is no place for the cache: HOME is not set, and the system knows no home folder "
            "of this user",
            "set the environment variable DREAMBOOTH_CACHE to a folder you may write to, or HOME",
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it; the store is made for its user alone."""
    root = cache_root()
    if root in (path, *path.parents) and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(0o700, exist_ok=True)
    path.mkdir(parents=True, exist_ok=True)


def store_trouble() -> str:
    """Return why what lies in the store may not be the user's own; empty where it must be.

    Whoever can write there can change what a run learns from. The store's usual place is closed
    to others where it stands open; a folder that the user named is left as it is.
    """
    root = cache_root()
    if not hasattr(os, "geteuid") or not root.is_dir():
        return ""
    found = root.stat()
    if found.st_uid != os.geteuid():
        return (
            f"the store {root} belongs to another user, who can change what this run reads from "
            "it: name a folder of your own in the environment variable DREAMBOOTH_CACHE"
        )
    opened = found.st_mode & 0o077
    if opened and not os.environ.get("DREAMBOOTH_CACHE"):
        root.chmod(0o700)
        return ""
    if not opened:
        return ""
    can = "change what this run reads from" if opened & 0o022 else "read your pictures' latents in"
    return f"other users can {can} the store {root}: chmod 700 keeps it yours"
