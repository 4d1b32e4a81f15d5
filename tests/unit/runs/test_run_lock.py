"""One process a run, also where the file system has no flock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from dreambooth.errors import RunError
from dreambooth.runs import lock as run_lock
from dreambooth.runs.folder import RunFolder

HOLD = """
import errno, fcntl, sys
from pathlib import Path
from dreambooth.runs.folder import RunFolder
def no_flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = no_flock
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def no_flock(request, monkeypatch):
    """As Lustre, some NFS and some containers answer."""

    def refused(*_):
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Leave a lock file of another process: `other(host="node7")`."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "")))
    monkeypatch.setattr(run_lock, "SETTLING", 0.0)

    def leave(age=0.0, **facts):
        path = tmp_path / run_lock.HOLDER
        path.write_text(json.dumps({**run_lock.this_process(), "token": "theirs", **facts}))
        os.utime(path, (time.time() - age, time.time() - age))
        return RunFolder(tmp_path)

    return leave


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_file_with_host_process_and_boot_stands_for_the_lock(tmp_path):
    said = []
    with RunFolder(tmp_path).lock(said.append):
        facts = json.loads((tmp_path / run_lock.HOLDER).read_text())
        assert facts["pid"] == os.getpid()
        assert facts["host"]
        assert facts["boot"]
        with pytest.raises(RunError, match=f"process {os.getpid()} of"):
            run_lock.require_free(tmp_path)
    [message] = said
    assert "no locks" in message
    assert not (tmp_path / run_lock.HOLDER).exists()
    run_lock.require_free(tmp_path)


def test_a_second_process_is_refused_and_a_killed_one_is_seen_to_be_gone(tmp_path, other):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=f"another process .*{holder.pid}") as caught:
            RunFolder(tmp_path).lock().__enter__()
        assert run_lock.HOLDER in caught.value.hint
        holder.kill()
        while run_lock.began_at(holder.pid) is not None:  # a zombie is gone, too
            time.sleep(0.01)
        with RunFolder(tmp_path).lock():
            pass


@pytest.mark.parametrize(
    ("facts", "lives"),
    [
        ({}, True),
        ({"began": 1}, False),  # another process has its number now
        ({"boot": "an earlier one"}, False),
        ({"host": "node7", "boot": "another"}, True),
        ({"namespace": "pid:[1]"}, True),  # another container: its numbers say nothing here
        ({"namespace": "pid:[1]", "age": 2 * run_lock.DEAD_AFTER}, False),
        ({"host": "node7", "boot": "another", "age": 2 * run_lock.DEAD_AFTER}, False),
        ({"age": 2 * run_lock.DEAD_AFTER}, True),  # it is stopped (Ctrl-Z), but there
    ],
)
def test_whether_a_lock_file_is_stale(tmp_path, other, facts, lives):
    folder = other(**facts)
    if lives:
        with pytest.raises(RunError, match="another process"), folder.lock():
            pass
        return
    with folder.lock():
        token = json.loads((tmp_path / run_lock.HOLDER).read_text())["token"]
        assert token != "theirs"


def test_of_two_that_take_a_dead_ones_place_one_goes_on(tmp_path, other, monkeypatch):
    folder = other(boot="an earlier one")
    # The other one writes its name after ours.
    monkeypatch.setattr(time, "sleep", lambda _: other())
    with pytest.raises(RunError, match="another process"), folder.lock():
        pass
    assert json.loads((tmp_path / run_lock.HOLDER).read_text())["token"] == "theirs"


def test_a_holder_gives_signs_of_life(tmp_path, other, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    with RunFolder(tmp_path).lock():
        path = tmp_path / run_lock.HOLDER
        os.utime(path, (0, 0))
        until = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_glance_at_the_lock_does_not_refuse_a_run(tmp_path, monkeypatch):
    with RunFolder(tmp_path).lock():
        pass
    files = [os.open(tmp_path / run_lock.LOCK, os.O_RDWR)]
    fcntl.flock(files[0], fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(files.pop()))
    with RunFolder(tmp_path).lock():
        pass
