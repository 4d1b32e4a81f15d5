"""Streams that fail, signals that ask: what the process of a run makes of them."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from dreambooth import process
from dreambooth.process import signals as signals_module
from dreambooth.process import streams

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX streams and signals")


@contextmanager
def piped(monkeypatch):
    """Make `sys.stdout` a guarded pipe for the block; yields the end to read from."""
    reads, writes = os.pipe()
    with (
        os.fdopen(reads, "rb") as reader,
        os.fdopen(writes, "w", encoding="utf-8") as stream,
        monkeypatch.context() as patch,
    ):
        patch.setattr(streams, "_state", streams._State())
        patch.setattr(sys, "stdout", stream)
        process.guard_streams()
        guarded = sys.stdout
        yield reader
        guarded.close()


def test_a_reader_that_goes_ends_nothing(monkeypatch):
    with piped(monkeypatch) as reader:
        reader.close()
        for _ in range(3):
            print("x" * 10000, flush=True)
        assert process.stdout_failure().errno == errno.EPIPE
        assert process.newly_quiet() == ["stdout cannot be written (Broken pipe); this log goes on"]
        assert process.newly_quiet() == []
        process.only_displays()
        assert process.stdout_failure() is None


def test_a_slow_reader_of_a_pipe_that_does_not_wait_gets_everything(monkeypatch):
    text = "".join(f"{i} ü\n" for i in range(30000))
    got = []
    with piped(monkeypatch) as reader:
        os.set_blocking(sys.stdout.fileno(), False)
        reading = threading.Thread(target=lambda: got.append(reader.read(len(text.encode()))))
        reading.start()
        print(text, end="", flush=True)
        reading.join(timeout=20)
        assert process.stdout_failure() is None
    assert got == [text.encode()]


def test_a_reader_that_reads_nothing_does_not_hold_a_stop_up(monkeypatch):
    noted = process.Signals()
    monkeypatch.setattr(signals_module, "_noting", [noted])
    asking = threading.Timer(0.1, lambda: setattr(noted, "stop", signal.SIGTERM))
    with piped(monkeypatch):
        asking.start()
        print("x" * 1_000_000, flush=True)  # a pipe holds 65,536
        asking.join()


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], check=False, **options)


TALK = """
import os, sys
from dreambooth.process import guard_streams, stdout_failure
guard_streams()
opened = os.open(os.devnull, os.O_RDONLY)
print("said" * 5000, flush=True)
print("here", file=sys.stderr, flush=True)
os.write(opened, b"") if opened < 3 else None
code = 10 * (opened < 3) + ((stdout_failure() or OSError(0, "")).errno or 0)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_kept_in_mind(unbuffered):
    with open("/dev/full", "w") as full:
        done = run_python(
            f"{TALK}\nsys.exit(code)",
            stdout=full,
            stderr=full,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == errno.ENOSPC


def test_closed_streams_leave_their_numbers_to_nobody():
    done = run_python(f"{TALK}\nsys.exit(code)", preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == errno.EBADF


def test_streams_that_somebody_put_there_stay(monkeypatch):
    class Cell(io.TextIOWrapper):
        pass

    cell = Cell(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", cell)
    process.guard_streams()
    assert sys.stdout is cell
    print("ü", flush=True)
    assert cell.buffer.getvalue() == b"\\xfc\n"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("schema > /dev/full", 1, "error: stdout: No space left on device\n"),
        ("schema >&-", 1, "error: stdout: Bad file descriptor\n"),
        ("schema | head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_a_command_whose_result_is_what_it_prints_fails_without_a_traceback(command, code, said):
    line = f"{sys.executable} -m dreambooth {command}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.fixture
def defaults():
    """What a program starts with, for the signals of a run; given back afterwards."""
    numbers = (*process.stops(), *process.saves())
    before = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_where_nothing_is_to_be_finished_a_signal_ends_the_work(defaults):
    for number in process.stops():
        with pytest.raises(process.Stopped) as caught, process.noted_signals():
            signal.raise_signal(number)
        assert caught.value.number == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_work_that_is_being_finished_takes_notes_and_a_stop_nobody_saw_to_is_raised(defaults):
    def work(noted):
        with noted.finishing():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGHUP)
            assert noted.stop == signal.SIGHUP
            assert [noted.take_save(), noted.take_save()] == [True, False]

    with process.noted_signals() as noted, pytest.raises(process.Stopped) as caught:
        work(noted)
    assert caught.value.number == signal.SIGHUP


def test_schedulers_repeat_themselves_and_a_person_means_it(defaults, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def work(noted):
        with noted.finishing():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # at once: a terminal's and a launcher's are one
            clock[0] += 60
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            assert noted.stop == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
            pytest.fail("nothing was raised")

    with process.noted_signals() as noted, pytest.raises(process.Stopped):
        work(noted)


def test_what_was_ignored_at_the_start_stays_ignored_and_others_handlers_stay(defaults):
    mine = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda number, frame: mine.append(number))
    with process.noted_signals() as noted, process.noted_signals() as same:
        assert noted is same
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
        assert (noted.stop, noted.take_save(), mine) == (0, False, [signal.SIGUSR1])


def test_a_stop_that_c_code_replaced_by_an_error_of_its_own_is_a_stop(defaults):
    """torch asks for a length, the handler raises there, and torch tells of a shape."""

    class Sized:
        def __len__(self):
            signal.raise_signal(signal.SIGTERM)
            return 0

    def told_as_c_code_does():
        try:
            return len(Sized())
        except BaseException:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(process.Stopped) as caught, process.noted_signals():
        told_as_c_code_does()
    assert caught.value.number == signal.SIGTERM
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_after_a_stop_that_was_seen_to_is_an_error(defaults):
    def failing():
        with process.noted_signals() as noted:
            with suppress(process.Stopped), noted.finishing():
                signal.raise_signal(signal.SIGTERM)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        failing()


def test_a_stop_that_comes_while_something_is_deleted_is_raised_after_it(defaults, capfd):
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work():
        Last()
        time.sleep(10.0)

    with pytest.raises(process.Stopped) as caught, process.noted_signals():
        work()
    assert caught.value.number == signal.SIGTERM
    assert "Traceback" not in capfd.readouterr().err


ASKED_TO_SAVE = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGUSR1)  # the last thing that is done
from dreambooth.cli import main
sys.argv = ["dbt", "run", "there is none.yaml"]
try:
    main()
finally:
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_a_checkpoint_that_is_asked_for_at_the_end_is_no_end():
    """One of two processes that had done all was ended by it, and the run with exit code 138."""
    done = subprocess.run([sys.executable, "-c", ASKED_TO_SAVE], capture_output=True, check=False)
    assert done.returncode == 2, done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_what_asks_for_a_checkpoint_is_noted_and_else_does_nothing(defaults):
    process.spare()
    signal.raise_signal(signal.SIGUSR1)
    with process.noted_signals() as noted:
        signal.raise_signal(signal.SIGUSR1)
        assert noted.take_save()
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    process.spare()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


def test_other_threads_take_no_notes():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work():
        with process.noted_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_person_hears_at_once_and_a_dead_stderr_does_no_harm(defaults, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            heard.set()
            raise BrokenPipeError

    heard = threading.Event()
    monkeypatch.setattr(sys, "stderr", Gone())
    with process.noted_signals() as noted, noted.finishing(lambda number: f"heard {number}"):
        signal.raise_signal(signal.SIGUSR1)
        assert heard.wait(timeout=10)


def test_signals_that_a_system_lacks_are_left_out(monkeypatch):
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert process.stops() == (signal.SIGINT, signal.SIGTERM, 21)
    assert process.saves() == ()
    process.hold(True)
    with process.noted_signals():
        pass
    with process.noting("SIGTSTP"):
        pass
