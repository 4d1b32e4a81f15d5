"""The process that launched the others: signals passed on, Ctrl-Z, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LAUNCH = """
import subprocess, sys
from dreambooth.process import launcher

def start(arguments, variables):
    command = [sys.executable, "-S", sys.argv[1], variables["RANK"], sys.argv[2]]
    return subprocess.Popen(command, start_new_session=True)

launcher.start = start
sys.exit(launcher.launch([], 2))
"""
RANK = """
import os, signal, sys, time
rank, folder = sys.argv[1:]

def note(number, frame):
    open(f"{folder}/{rank}-{number}", "w").close()
    if number != signal.SIGUSR1:
        os._exit(128 + number if rank == "0" else 1)

time.sleep(0.2)  # signals that come before it listens wait
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, note)
open(f"{folder}/{rank}-{os.getpid()}.pid", "w").close()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [1, 2, 10, 12, 15])
while True:
    time.sleep(0.02)
"""


@pytest.fixture
def launched(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "noted").mkdir()

    def free():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    command = [sys.executable, "-c", LAUNCH, str(tmp_path / "rank.py"), str(tmp_path / "noted")]
    # A group of its own in our session, as a shell's job has.
    process = subprocess.Popen(command, process_group=0, preexec_fn=free)
    yield process, tmp_path / "noted"
    process.kill()
    process.wait()


def wait_until(check):
    until = time.monotonic() + 60
    while not check():
        assert time.monotonic() < until
        time.sleep(0.02)


def pids(noted):
    found = [int(p.name.split("-")[1].removesuffix(".pid")) for p in noted.glob("*.pid")]
    return found if len(found) == 2 else []


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_signals_reach_all_and_the_main_process_names_the_exit_code(launched, number):
    process, noted = launched
    wait_until(lambda: pids(noted))
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: len(list(noted.glob(f"*-{int(signal.SIGUSR1)}"))) == 2)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert sorted(p.name for p in noted.glob(f"*-{int(number)}")) == [f"0-{number}", f"1-{number}"]


def test_ctrl_z_stops_all_of_them_and_fg_continues_all(launched):
    process, noted = launched
    wait_until(lambda: pids(noted))
    everyone = [process.pid, *pids(noted)]
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: all(state(pid) == "T" for pid in everyone))
    os.killpg(process.pid, signal.SIGCONT)  # what a shell does
    wait_until(lambda: all(state(pid) in "SR" for pid in everyone))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


def test_signals_that_come_while_the_others_start_wait(launched):
    process, noted = launched
    while b"python" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    wait_until(lambda: children_of(process.pid) == 2)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: len(list(noted.glob(f"*-{int(signal.SIGUSR1)}"))) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


def children_of(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return len(path.read_text().split())
