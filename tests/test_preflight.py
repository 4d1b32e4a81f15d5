"""What the dry run says is what happens: both are run over a table of situations."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth.engine import loop
from dreambooth.engine.checkpoints import files
from dreambooth.engine.cost import plan
from dreambooth.engine.data.moments import content
from dreambooth.engine.manifest import describe_base
from dreambooth.jobs.identifiers import by_model
from dreambooth.jobs.loading import dump_job
from dreambooth.process import launcher
from dreambooth.runs.folder import RunFolder

OWN, FOREIGN = "runs/small/checkpoints/", "elsewhere/step-000004"


class Started(Exception):
    """The run has come to where weights would be loaded."""


@dataclass
class Place:
    """A project folder with a job, a run of it that is forged, and what the test wants there."""

    path: Path
    job: Any
    stack: ExitStack
    patch: pytest.MonkeyPatch
    make_ctx: Any
    folder: RunFolder

    def begun(self, *steps: int, result: int = 0, **sections: Any) -> None:
        """Forge a run with checkpoints of these steps, finished after `result` steps."""
        job = self.job.model_copy(update=sections)
        job = by_model(job)
        self.folder.begin(job, dump_job(job), 1)
        ctx = self.make_ctx(job=job, device="meta")
        images = {item.id: " ".join(content(item)) for item in job.data.scan(ctx).items}
        self.folder.update_manifest(images=images, **describe_base(job.model.open(ctx)))
        for step in steps:
            self.checkpoint(self.folder.checkpoints, step)
        if result:
            final = self.folder.final
            final.mkdir()
            (final / "model.safetensors").write_bytes(b"weights")
            done = {"steps": result, "checks": ["diffusers: equal"], "scalars": {}}
            self.folder.update_manifest(result={**done, "files": self.folder.listing(final)})

    def checkpoint(self, folder: Path, step: int) -> None:
        tensors = {"trainable": {"unet.w": torch.full((3,), float(step))}}
        files.save(folder, step, tensors, {"step": step}, lambda there: [])

    def forge(self, path: Path, name: str, data: bytes = b"x") -> None:
        """Write a file of a checkpoint anew, and checksums that fit it."""
        (path / name).write_bytes(data)
        sums = json.loads((path / "checksums.json").read_text())
        sums[name] = hashlib.sha256(data).hexdigest()
        (path / "checksums.json").write_text(json.dumps(sums))

    def spoil(self, step: int) -> None:
        (self.folder.checkpoints / f"step-{step:06d}/trainable.safetensors").write_bytes(b"x")

    def locked(self) -> None:
        """As by another process: flock belongs to the opened file."""
        self.stack.enter_context(self.folder.lock())

    def move(self, name: str = "", other: str = "") -> None:
        """Let the project (or its model) move elsewhere; with `other`, change a picture there."""
        target = self.path / "moved"
        shutil.copytree(self.job.data.path, target)
        if other:
            Image.new("RGB", (40, 40), "white").save(target / other)


def model_folder(place: Place, tiny_model: Path) -> str:
    shutil.copytree(tiny_model, place.path / "model")
    return str(place.path / "model")


def nothing(place: Place) -> None:
    pass


def foreign(place: Place) -> None:
    place.checkpoint(place.path / "elsewhere", 4)


def foreign_and_own(place: Place) -> None:
    foreign(place)
    place.begun(2)


def no_home(place: Place) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "DREAMBOOTH_CACHE"):
        place.patch.delenv(name, raising=False)
    place.patch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))


def environment(**values: str) -> Any:
    return lambda place: [place.patch.setenv(name, value) for name, value in values.items()]


def busy(place: Place) -> None:
    """Somebody listens on the port."""
    import socket

    taken = place.stack.enter_context(socket.create_server(("", 0)))
    names = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment(**names, MASTER_PORT=str(taken.getsockname()[1]))(place)


def orphan(place: Place) -> None:
    """As a kill between the two renames of a replaced checkpoint leaves it."""
    place.begun(2, 4)
    newest = place.folder.checkpoints / "step-000004"
    newest.rename(newest.with_name(".step-000004.123.old"))


def damaged_manifest(place: Place) -> None:
    place.begun(2)
    place.folder.manifest.write_text("{")


def file_as_output(place: Place) -> None:
    (place.path / "file").write_text("")


STEPS = ("-o", "train.steps=9")
# name: (what lies there, arguments, exit code, step it starts at or None, what is said)
SITUATIONS: dict[str, tuple[Any, tuple[str, ...], int, int | None, str]] = {
    "fresh": (nothing, (), 0, 0, ""),
    "finished": (lambda p: p.begun(2, 4, result=4), (), 0, None, "this run is finished: 4 steps"),
    "finished, more steps": (
        lambda p: p.begun(4, result=4), STEPS, 0, 4,
        "train.steps changed since the last time: 4 -> 9"),
    "finished, its result gone": (
        lambda p: p.begun(4, result=4) or shutil.rmtree(p.folder.final), (), 0, 4, ""),
    "half done": (lambda p: p.begun(2), (), 0, 2, ""),
    "half done, newest damaged": (
        lambda p: p.begun(1, 2) or p.spoil(2), (), 0, 1,
        "(trainable.safetensors was changed or cut short); using step-000001"),
    "half done, all damaged": (
        lambda p: p.begun(2) or p.spoil(2), (), 0, 0, "no other is left: starting at step 0"),
    "half done, newest holds something else under good checksums": (
        lambda p: p.begun(1, 2) or p.forge(p.folder.checkpoints / "step-000002", "state.json"),
        (), 0, 1, "using step-000001"),
    "killed while the newest was replaced": (orphan, (), 0, 4, ""),
    "changed, harmless": (
        lambda p: p.begun(2), ("-o", "log.every=3"), 0, 2,
        "log.every changed since the last time: 1 -> 3"),
    "changed, refused": (
        lambda p: p.begun(2), ("-o", "train.seed=3"), 2, None, "train.seed: 0 -> 3"),
    "changed, refused, fresh": (
        lambda p: p.begun(2), ("-o", "train.seed=3", "--fresh"), 0, 0, "small.old-1"),
    "locked": (lambda p: p.locked(), (), 1, None, "another process is running"),
    "locked, fresh": (
        lambda p: p.begun(2) or p.locked(), ("--fresh",), 1, None, "another process is running"),
    "locked, finished": (
        lambda p: p.begun(4, result=4) or p.locked(), (), 1, None, "another process is running"),
    "unwritable output": (nothing, ("-o", "output=/proc/x"), 2, None, "cannot write into /proc/x"),
    "output a file": (
        file_as_output, ("-o", "output=file"), 2, None, "/file: Not a directory"),
    "output with a name too long": (
        nothing, ("-o", f"output={'x' * 300}"), 2, None, "File name too long"),
    "resume from an earlier one": (
        lambda p: p.begun(1, 2, 3), ("--resume-from", "2"), 0, 2, "going back to step-000002"),
    "resume from the newest": (lambda p: p.begun(1, 2), ("--resume-from", "2"), 0, 2, ""),
    "resume from one of a finished run": (
        lambda p: p.begun(2, 4, result=4), ("--resume-from", f"{OWN}step-000002"), 0, 2, ""),
    "resume from a damaged one": (
        lambda p: p.begun(1, 2) or p.spoil(1), ("--resume-from", "1"), 1, None,
        "step-000001 is damaged"),
    "resume from one that is not there": (
        lambda p: p.begun(2), ("--resume-from", "3"), 2, None,
        "it has: step-000002"),
    "resume from ²": (lambda p: p.begun(2), ("--resume-from", "²"), 2, None, "no checkpoint ²"),
    "resume from another run's": (
        foreign, ("--resume-from", FOREIGN), 0, 4, f"/{FOREIGN}"),
    "resume from another run's, no tensors under good checksums": (
        lambda p: foreign(p) or p.forge(p.path / FOREIGN, "trainable.safetensors"),
        ("--resume-from", FOREIGN), 1, None, "is damaged: trainable.safetensors cannot be read"),
    "resume from another run's, having own ones": (
        foreign_and_own, ("--resume-from", FOREIGN), 2, None, "belongs to another run"),
    "damaged manifest": (damaged_manifest, (), 1, None, "manifest.json cannot be read"),
    "no model": (nothing, ("-o", "model.source=/no/model"), 2, None, "no model at"),
    "no pictures": (nothing, ("-o", "data.path=/no/pictures"), 2, None, "/no/pictures"),
    "pictures moved": (
        lambda p: p.begun(2) or p.move(), ("-o", "data.path=moved"), 0, 2, "data.path changed"),
    "pictures moved, others there": (
        lambda p: p.begun(2) or p.move(other="0.png"), ("-o", "data.path=moved"), 2, None,
        "was started with other pictures (0.png)"),
    "RANK is no number": (environment(RANK="abc"), (), 2, None, "RANK is 'abc'"),
    "RANK without a world": (environment(RANK="1"), (), 2, None, "WORLD_SIZE is 1"),
    "WORLD_SIZE without a master": (
        environment(WORLD_SIZE="2", RANK="0"), (), 2, None, "no MASTER_ADDR and no MASTER_PORT"),
    "a busy port": (busy, (), 2, None, "Address already in use"),
    "a user without a home": (no_home, (), 2, None, "DREAMBOOTH_CACHE"),
}  # fmt: skip


@pytest.fixture
def place(small_job, tmp_path, monkeypatch, make_ctx):
    job = small_job(prior="none")
    (tmp_path / "job.yaml").write_text(dump_job(job))
    with ExitStack() as stack:
        yield Place(tmp_path, job, stack, monkeypatch, make_ctx, RunFolder(job.folder))


@pytest.fixture(scope="module")
def plans():
    """Plans that were made: what they count is not what these tests are about."""
    return {}


@pytest.fixture
def both(dbt, place, monkeypatch, plans):
    """Do a dry run, which must change nothing, then the run up to where it would load weights."""
    started = []
    newest, make_plan = loop.newest_of_all, plan.make_plan

    def make_once(job, reporter, *, resumes_at, fresh, processes):
        if not plans:
            plans["one"] = make_plan(job, reporter)
        scan = job.data.scan(place.make_ctx(job=job, device="meta"))
        return replace(plans["one"], scan=scan, folder=job.folder, resumes_at=resumes_at)

    def look(*args):
        found = newest(*args)
        started.append(int(found.folder.name.removeprefix("step-")) if found else 0)
        return found

    def stop(*_):
        raise Started

    monkeypatch.setattr(loop, "newest_of_all", look)
    monkeypatch.setattr(loop, "open_session", stop)
    monkeypatch.setattr(plan, "make_plan", make_once)

    def call(*args):
        before = tree(place.path)
        dry = dbt("run", "job.yaml", *args, "--dry-run", cwd=place.path)
        assert tree(place.path) == before
        real = dbt("run", "job.yaml", *args, cwd=place.path)
        return dry, real, (started[0] if started else None)

    return call


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if not path.is_dir()
    }


def told(text: str) -> list[str]:
    """Return what was said of the run that lies there; done things are told as things to do."""
    text = text.replace("was moved to", "will be moved to")
    marks = ("changed since the last time", "beginning at", "earlier run", "going back", "damaged")
    stamp = r"^[\d-]{10} [\d:]{8}  "  # where a terminal is not there to read it
    lines = [re.sub(stamp, "", line).removeprefix("warning: ") for line in text.splitlines()]
    return [line.split(";")[0] for line in lines if any(mark in line for mark in marks)]


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_dry_run_says_what_the_run_does(both, place, name):
    lay, args, code, step, said = SITUATIONS[name]
    lay(place)
    dry, real, started = both(*args)
    assert dry.returncode == code, dry.stderr
    assert said in dry.stdout + dry.stderr
    assert "Traceback" not in dry.stderr
    assert started == step
    if step is None:  # it ended there: in the same words
        assert (real.returncode, real.stderr) == (dry.returncode, dry.stderr)
        assert real.stdout == dry.stdout
        return
    assert "Started" in real.stderr
    assert (f"goes on from step {step}" in dry.stdout) == (step > 0)
    assert told(dry.stdout + dry.stderr) == told(real.stdout + real.stderr)


@pytest.mark.parametrize("change", [False, True], ids=["the same", "another"])
def test_a_model_that_moved_is_compared_by_content(both, place, tiny_model, change):
    source = model_folder(place, tiny_model)
    place.begun(2, model=type(place.job.model)(source=str(tiny_model)))
    if change:
        (place.path / "model/unet/config.json").write_text(
            (place.path / "model/unet/config.json").read_text().replace('"silu"', '"gelu"')
        )
    dry, real, _ = both("-o", f"model.source={source}")
    if change:
        assert "was started with other weights (unet)" in dry.stderr
        assert (real.returncode, real.stderr) == (dry.returncode, dry.stderr) == (2, dry.stderr)
        # It is not taken as the run's own job either: the next try is refused, too.
        assert json.loads(place.folder.manifest.read_text())["job"]["model"]["source"] != source
    else:
        assert dry.returncode == 0, dry.stderr
        assert "goes on from step 2" in dry.stdout


def test_what_needs_no_run_is_said_by_validate_too(dbt, place):
    environment(RANK="abc")(place)
    found = dbt("validate", "job.yaml", cwd=place.path)
    assert found.returncode == 2
    assert "RANK is 'abc'" in found.stderr
    environment(RANK="0")(place)
    found = dbt("validate", "job.yaml", "-o", "output=/proc/x", cwd=place.path)
    assert found.returncode == 2
    assert "cannot write into /proc/x" in found.stderr
    no_home(place)
    assert "DREAMBOOTH_CACHE" in dbt("validate", "job.yaml", cwd=place.path).stderr


def test_torchruns_agent_may_listen_on_the_port(place):
    busy(place)
    environment(TORCHELASTIC_USE_AGENT_STORE="True")(place)
    launcher.require_environment()


def test_a_finished_run_answers_without_torch(place):
    import subprocess
    import sys

    place.begun(4, result=4)
    code = (
        "import sys; from dreambooth.cli import _main; sys.argv = ['dbt', 'run', 'job.yaml']; "
        "assert _main() == 0; assert 'torch' not in sys.modules; print(len(sys.modules))"
    )
    env = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.path, capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "this run is finished: 4 steps" in done.stdout
