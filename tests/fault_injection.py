"""The command line on a disk that is slow or deadly, many lives a process.

`python fault_injection.py [JOB]` imports what is heavy once (and opens a job, which imports the
rest), then reads lines of JSON from stdin: {"args": [...], "env": {...}, "slow": SECONDS,
"die_at": "WORD:N"}. Each is one life of `dbt ARGS` in a process of its own, forked; its number is
printed, then its exit status (negative: signal). Signals that come before a life listens wait.

slow: every tensor file takes so long, written in two halves; syncs take a quarter of it.
die_at: SIGKILL half-way through the N-th tensor file whose path holds the word (from 1), or, for
the word `rename`, just before the N-th folder that is whole gets its name.
windows: take away what Windows lacks first (see `fake_windows`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import safetensors.torch


class Faults:
    """What goes wrong in this life."""

    def __init__(self, slow: float = 0.0, die_at: str = "") -> None:
        self.slow = slow
        self.word, _, number = die_at.partition(":")
        self.left = int(number or 0)

    def moment(self, text: str) -> None:
        """Die when the moment has come."""
        if self.word and self.word in text:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put slow and deadly writers in the place of the real ones."""
        from dreambooth.files import writing as files

        save, sync, rename = safetensors.torch.save, files.sync, Path.rename

        def save_file(tensors, path, metadata=None):
            data = save(tensors, metadata)
            half = len(data) // 2
            with open(path, "wb") as file:
                file.write(data[:half])
                file.flush()
                time.sleep(self.slow)
                self.moment(str(path))
                file.write(data[half:])

        def slow_sync(path):
            time.sleep(self.slow / 4)
            sync(path)

        def deadly_rename(path, target):
            if path.name.endswith(".new"):
                self.moment("rename")
            return rename(path, target)

        safetensors.torch.save_file = save_file
        files.sync = slow_sync
        Path.rename = deadly_rename


def live(args, env, windows=False, **faults):
    """Run the command line once; never returns."""
    os.environ.update(env)
    # Whoever runs the tests in the background, or under nohup, ignores them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if windows:
        from fake_windows import become_windows

        become_windows()
    Faults(**faults).install()
    from dreambooth.cli import main

    sys.argv = ["dbt", *args]
    sys.stdout = open(env["OUTPUT"], "w")
    sys.stderr = sys.stdout
    main()


def warm_up(path):
    """Open a job as a run does, up to its first step: in one thread, without a backward pass."""
    import torch

    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.devices.precision import Precision
    from dreambooth.engine.devices.processes import open_devices
    from dreambooth.engine.reporting import Quiet
    from dreambooth.engine.session import open_session
    from dreambooth.jobs.loading import load_job

    torch.set_num_threads(1)
    import dreambooth.engine.loop  # noqa: F401

    job = load_job(path)
    with open_devices(job.train) as devices:
        precision = Precision("fp32", devices.device)
        folder = job.folder.with_name("warm")
        ctx = EngineContext(job, devices.device, precision, folder, Quiet(), devices)
        open_session(ctx, job.data.scan(ctx))


def serve():
    """Fork a life for each line of stdin."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    import dreambooth.cli.display.progress  # noqa: F401
    from dreambooth.process import hold

    for job in sys.argv[1:]:
        warm_up(Path(job))
    for line in sys.stdin:
        hold(True)
        pid = os.fork()
        if pid == 0:
            try:
                live(**json.loads(line))
            except SystemExit as ended:
                sys.stdout.flush()
                os._exit(ended.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        hold(False)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
