"""Optuna's storages: a journal file, or PostgreSQL with signs of life; and a server that is away.

What the installed Optuna (5.0) does: only its relational storage keeps heartbeats. They are written
by a thread of `Study.optimize`, which dies with the first write that fails, and `optimize` ends
with the first call that does: a server that restarts would end every worker, with a trial lost. So
the loop is our own, by `ask` and `tell`: the thread here goes on over failures, and every call is
made again until the server is back. Stale trials are found by Optuna's `fail_stale_trials`, by the
server's own clock. With a journal there are no heartbeats; there the lock of the trial's claim
tells (see `trials`).
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dreambooth.component import expand_variables
from dreambooth.errors import JobError, RunError
from dreambooth_plugins.common.extras import importing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna import Study
    from optuna.storages import BaseStorage

T = TypeVar("T")
PATIENCE = 1800.0
"""Seconds that a worker waits for a server that is away."""
LONGEST_PAUSE = 15.0


class StorageAway(RunError):
    """The database could not be reached for too long."""


@contextmanager
def experimental() -> Iterator[None]:
    """Use what Optuna calls experimental (heartbeats, retries) without its warnings."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield


class Store:
    """A study's storage, asked again while it is away."""

    def __init__(self, url: str, journal: Path, grace: int, warn: Callable[[str], None]) -> None:
        """Open the storage; `RunError` where Optuna is missing or the server refuses."""
        with importing("sweep", "sweep"):
            import optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.beats = url != "file"
        self.grace = grace
        self._warn = warn
        self._shown = without_password(url)
        self.storage: BaseStorage = (
            database(url, self._shown, grace) if self.beats else journal_of(journal)
        )

    def __enter__(self) -> Store:
        """Return the store, to be closed at the end of a block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections to a database."""
        self.storage.remove_session()
        if self.beats:
            engine: Any = getattr(self.storage, "engine")  # noqa: B009 - of databases alone
            engine.dispose()

    def __call__(self, ask: Callable[[], T]) -> T:
        """Return what `ask` does, made again while the server is away; `StorageAway` in the end."""
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                with experimental():
                    return ask()
            except Exception as error:
                if not is_away(error):
                    raise
                waited = time.monotonic() - began
                if waited > PATIENCE:
                    raise StorageAway(
                        f"{self._shown} could not be reached for {waited / 60:.0f} minutes",
                        "the trial's checkpoint is kept: start the worker again",
                    ) from None  # whose text may hold the address with all that is in it
                if pause < 1.0:
                    self._warn(f"{self._shown} is away; trying again until it is back")
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    @contextmanager
    def alive(self, trial_id: int) -> Iterator[None]:
        """Give signs of life of a trial within the block, where the storage keeps them."""
        if not self.beats:
            yield
            return
        self(lambda: self._beat(trial_id))
        ended = threading.Event()
        beating = threading.Thread(
            target=self._beating, args=(trial_id, ended), name="sweep", daemon=True
        )
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()

    def _beat(self, trial_id: int) -> None:
        record: Any = getattr(self.storage, "record_heartbeat")  # noqa: B009 - of databases alone
        record(trial_id)

    def _beating(self, trial_id: int, ended: threading.Event) -> None:
        while not ended.wait(self.grace / 4):
            try:
                self._beat(trial_id)
            except Exception as error:
                if not is_away(error):
                    raise  # and the trial counts as gone: told by Python's own hook

    def fail_stale(self, study: Study) -> None:
        """Let Optuna mark trials as failed whose worker gave no sign of life for too long."""
        if self.beats:
            from optuna.storages import fail_stale_trials

            self(lambda: fail_stale_trials(study))


def journal_of(path: Path) -> BaseStorage:
    """Return Optuna's journal in a file that machines may share."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import (
        JournalFileBackend,
        JournalFileOpenLock,
        JournalFileSymlinkLock,
    )

    lock = JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock(str(path))))


def database(url: str, shown: str, grace: int) -> BaseStorage:
    """Return Optuna's storage in PostgreSQL; `RunError` where it cannot be opened."""
    with importing("sweep", "sweep"):
        import psycopg  # noqa: F401
        from optuna.storages import RDBStorage
    address = "postgresql+psycopg://" + filled(url).partition("://")[2]
    try:
        with experimental():
            return RDBStorage(
                address,
                # A connection that a restart has cut is noticed and replaced.
                engine_kwargs={"pool_pre_ping": True, "pool_size": 2},
                heartbeat_interval=max(1, grace // 4),
                grace_period=grace,
            )
    except Exception as error:
        if not is_away(error):
            raise
        said = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{shown} cannot be opened: {said}",
            "check that the server runs and the database is there; a password comes from "
            "${NAME} in storage, PGPASSWORD or ~/.pgpass",
        ) from None  # SQLAlchemy's error may hold the address


def is_away(error: BaseException) -> bool:
    """Say whether a call failed because the server could not be reached, or went away meanwhile."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import InterfaceError, OperationalError

    known = (InterfaceError, OperationalError)
    return isinstance(error, (*known, StorageInternalError)) and (
        isinstance(error, known) or isinstance(error.__cause__, known)
    )


def filled(url: str) -> str:
    """Return the URL with variables filled in; `JobError` for one that is not set."""
    try:
        return expand_variables(url)
    except ValueError as error:
        raise JobError(f"storage: {error}") from None


def without_password(url: str) -> str:
    """Return a URL that may be written and shown: a password in it is left out.

    A `${NAME}` stands for one and stays.
    """
    scheme, mark, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    user, colon, password = login.partition(":")
    host = host.split("?", 1)[0] if "password=" in host else host
    if colon and not password.startswith("$"):
        login = user
    return f"{scheme}{mark}{login}{at}{host}"
