"""Fixtures shared by all tests. torch is imported inside them: collection stays light."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import Tools

pytest_plugins = ["dreambooth.testing.fixtures"]

# One thread: tiny networks gain nothing from more, and lose much where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the tests' parent ignores (nohup, a shell in the background) a program would go on ignoring;
# the tests are about programs in the foreground.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if (_number := getattr(signal, _name, None)) and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_addoption(parser):
    """Add `--shard K/N`, and `--tools` (see `tools`)."""
    parser.addoption("--shard", help="run every N-th test from the K-th on, as K/N")
    parser.addoption("--tools", action="store_true", help="fail where a tool is missing")


def pytest_configure(config):
    """Look for the programs that some tests drive."""
    config.pluginmanager.register(Tools(config), "tools-of-tests")


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    """Keep the tests of this shard: together the N shards run each test once."""
    if not (shard := config.getoption("--shard")):
        return
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise pytest.UsageError(f"--shard {shard}: K/N is meant, with 1 <= K <= N")
    kept = items[int(number) - 1 :: int(count)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the tests out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Sync nothing: a run does so fifty times, and only a loss of power could tell the difference.

    What is synced, and in which order, is held by `unit/files`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(_own_cache) -> Path:
    """Diffusers folder of `builtin:tiny`; do not write into it."""
    from dreambooth_plugins.model.tiny import tiny_folder

    return tiny_folder(build=True)


@pytest.fixture
def emit(capsys):
    """Print a measured figure past pytest's capture: `emit("loss apart", 1e-7)`."""

    def show(name: str, value: Any) -> None:
        with capsys.disabled():
            print(f"\n  {name}: {value}", end="")

    return show


class _Bar:
    def advance(self, count: int = 1) -> None:
        pass


@dataclass
class FakeContext:
    """A `Context` on the CPU in float32, without an engine; `warnings` collects what is said."""

    folder: Path
    job: Any = None
    device: Any = None
    dtype: Any = None
    is_main: bool = True
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    warnings: list[str] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        self.device = torch.device(self.device or "cpu")
        self.dtype = self.dtype or torch.float32

    def _key(self, stream: str, index: tuple[int, ...]) -> int:
        text = repr((self.seed, stream, index))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def random(self, stream: str, *index: int) -> Any:
        import torch

        return torch.Generator().manual_seed(self._key(stream, index))

    def numpy_random(self, stream: str, *index: int) -> Any:
        import numpy as np

        return np.random.default_rng(self._key(stream, index))

    def progress(self, label: str, total: int) -> Any:
        return contextlib.nullcontext(_Bar())

    def autocast(self) -> Any:
        import torch

        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=half)

    def gather(self, tensor: Any) -> Any:
        return tensor

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def chunks(
        self, name: str, key: Any, chunk_size: int, build: Any, *, total: int | None = None
    ) -> Any:
        from dreambooth.engine.cache.store import ChunkStore
        from dreambooth.engine.reporting import Quiet

        return ChunkStore(name, key, chunk_size, build, Quiet(), total)


@pytest.fixture
def make_ctx(tmp_path):
    """Make a fake `Context`: `make_ctx(device="meta", dtype=torch.bfloat16)`."""

    def make(**options: Any) -> FakeContext:
        return FakeContext(folder=tmp_path / "run", **options)

    return make


@pytest.fixture
def ctx(make_ctx) -> FakeContext:
    """A fake `Context` on the CPU in float32."""
    return make_ctx()


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of three small pictures with captions."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        image = Image.new("RGB", (48, 40), color)
        image.paste((255, 255, 0), (4 * i, 8, 4 * i + 16, 24))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i} of {{identifier}} {{class_noun}}")
    return folder


@pytest.fixture
def small_job(tmp_path, pictures):
    """Make a job that runs in a second or two: `small_job(train={"steps": 3}, prior="none")`.

    Mappings are merged into the defaults below, anything else replaces them.
    """
    from dreambooth.job import Job

    base: dict[str, Any] = {
        "name": "small",
        "output": tmp_path / "runs",
        "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
        "subject": {"identifier": "ohwx", "class_noun": "dog"},
        "data": {"kind": "folder", "path": pictures, "resolution": 32},
        "prior": {"kind": "generated", "count": 4, "batch_size": 4},
        "sampler": {"kind": "cfg", "steps": 2},
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "samples": {"every": 0},
        "checkpoints": {"every": 100},
        "log": {"every": 1},
        "train": {"steps": 4, "precision": "fp32"},
        "trackers": ["jsonl"],
    }

    def make(**sections: Any) -> Job:
        merged = dict(base)
        for name, value in sections.items():
            whole = isinstance(value, dict) and isinstance(base.get(name), dict)
            same = whole and value.get("kind", base[name].get("kind")) == base[name].get("kind")
            merged[name] = {**base[name], **value} if same else value
        return Job(**merged)

    return make


@pytest.fixture
def open_for(small_job):
    """Set a run up without training it: `open_for("bf16", freezing="adapter")`."""
    from dreambooth.engine.context import EngineContext
    from dreambooth.engine.devices.precision import Precision
    from dreambooth.engine.devices.processes import open_devices
    from dreambooth.engine.reporting import Quiet
    from dreambooth.engine.session import open_session

    with contextlib.ExitStack() as stack:

        def make(precision: str = "fp32", **sections: Any) -> Any:
            job = small_job(**sections)
            devices = stack.enter_context(open_devices(job.train))
            compute = Precision(precision, devices.device)
            ctx = EngineContext(job, devices.device, compute, job.folder, Quiet(), devices)
            return open_session(ctx, job.data.scan(ctx))

        yield make


@pytest.fixture
def dbt(monkeypatch, capsys):
    """Run the command line in this process: `dbt("run", path, cwd=folder)`.

    Returns what `subprocess.run` would: `returncode`, `stdout`, `stderr`.
    """
    from dreambooth import cli

    for name, value in {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)

    def call(*args: Any, cwd: Path) -> SimpleNamespace:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["dbt", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=said.out, stderr=said.err)

    return call
