"""Studies in PostgreSQL: the real server, killed workers, a server that goes away, passwords."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from taking_over import check_taken_over, quiet

from dreambooth.errors import JobError, RunError
from dreambooth_plugins.sweep import trials
from tools import postgres

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked"),
]
PASSWORD = "correct-horse-battery"


class Server:
    """A private cluster on a loopback port, run by an ordinary user."""

    def __init__(self) -> None:
        self._bin = Path(postgres() or "").parent
        self._user = {"user": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        self._home = Path(tempfile.mkdtemp(prefix="dbt-pg-"))
        (self._home / "password").write_text(PASSWORD)
        if self._user:
            for path in (self._home, self._home / "password"):
                shutil.chown(path, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call(
            *("initdb", "-D", self._home / "data", "-U", "dbt", "-A", "scram-sha-256"),
            *("--pwfile", self._home / "password", "--no-sync"),
        )

    @property
    def url(self) -> str:
        return f"postgresql://dbt:${{SWEEP_PASSWORD}}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._home} -F"
        self._call("pg_ctl", "-D", self._home / "data", "-w", "-o", options,
                   "-l", self._home / "log", "start")  # fmt: skip

    def stop(self) -> None:
        self._call("pg_ctl", "-D", self._home / "data", "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def log(self) -> str:
        return (self._home / "log").read_text()

    def _call(self, program: str, *args: object) -> None:
        subprocess.run(
            [str(self._bin / program), *map(str, args)], cwd="/", check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **self._user,
        )  # fmt: skip


@pytest.fixture(scope="module")
def server():
    one = Server()
    one.start()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    monkeypatch.setenv("SWEEP_PASSWORD", PASSWORD)


@pytest.mark.slow
def test_two_workers_share_a_study_and_a_killed_ones_trial_goes_on(
    server,
    lives,
    worker,
    sweep_file,
    template,
    tmp_path,
):
    keys = {"trials": 1, "storage": server.url, "grace": 4, "name": "killed"}
    path = sweep_file(template, **keys)
    cache = os.environ["DREAMBOOTH_CACHE"]
    status, said = lives.run(["sweep", path], cache, die_at="step-000002:1")
    assert status == -signal.SIGKILL, said
    one = worker(job=template, **keys)
    one.reporter = quiet()
    one.work()  # waits until the database has had no sign of life for the grace
    check_taken_over(worker, one, template, tmp_path)
    written = [p for p in one.folder.path.rglob("*") if p.is_file()]
    assert [p for p in written if PASSWORD.encode() in p.read_bytes()] == []
    assert PASSWORD not in said


@pytest.mark.slow
def test_a_living_workers_trial_stays_its_own_for_longer_than_the_grace(server, worker, fake_run):
    keys = {"trials": 1, "storage": server.url, "grace": 4, "name": "slow"}
    one, two = worker(**keys), worker(**keys)

    def slow(job):
        for _ in range(7):
            time.sleep(1.0)
            two.recover()

    fake_run.begun = slow
    one.work()
    assert [a.state.name for a in one.attempts()] == ["COMPLETE"]


def test_a_worker_stopped_for_longer_than_the_grace_leaves_its_trial(server, worker, fake_run):
    keys = {"trials": 1, "storage": server.url, "grace": 4, "name": "stopped"}
    one, two = worker(**keys), worker(**keys)
    one.store._beating = lambda trial_id, ended: None  # as SIGSTOP does to the whole process

    def stopped(job):
        if len(fake_run.runs) == 1:
            time.sleep(6.0)
            two.recover()  # the database says it is gone; its claim says it is there
            assert [a.state.name for a in two.attempts()] == ["FAIL"]

    fake_run.begun = stopped
    one.work()
    assert any("leaves the trial to others" in line for line in one.reporter.lines)
    assert [a.state.name for a in one.attempts()] == ["FAIL", "COMPLETE"]


def test_the_server_goes_away_and_comes_back(server, worker, fake_run):
    one = worker(trials=3, storage=server.url, grace=120, name="away")

    def outage(job):
        if len(fake_run.runs) == 2:
            server.stop()
            threading.Timer(3.0, server.start).start()

    fake_run.begun = outage
    one.work()
    assert [trials.state_of(a) for a in one.newest().values()] == ["done"] * 3
    assert len(fake_run.runs) == 3
    away = [line for line in one.reporter.lines if "is away" in line]
    assert away
    assert not any(PASSWORD in line for line in one.reporter.lines)


def test_what_is_wrong_with_the_address_is_told_without_the_password(
    server, worker, monkeypatch, tmp_path
):
    wrong = server.url.replace("${SWEEP_PASSWORD}", "not-this-one")
    with pytest.raises(RunError, match=r"cannot be opened: .*password authentication") as told:
        worker(storage=wrong, name="wrong")
    assert "not-this-one" not in f"{told.value.message} {told.value.hint}"
    written = [p for p in (tmp_path / "sweeps").rglob("*") if p.is_file()]
    assert written
    assert not any(b"not-this-one" in p.read_bytes() for p in written)
    monkeypatch.delenv("SWEEP_PASSWORD")
    with pytest.raises(JobError, match='environment variable "SWEEP_PASSWORD" is not set'):
        worker(storage=server.url, name="unset")
