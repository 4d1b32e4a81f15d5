"""Checkpoints and manifests spoilt at random (cache files: `test_fuzz_cache.py`).

Damage is named and passed over; what passes every checksum but was written by somebody else is
refused in words or used, never a traceback.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.files import STATE, Checkpoint, newest
from dreambooth.engine.checkpoints.restoring import restore
from dreambooth.engine.checkpoints.resuming import begin
from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.loop import run
from dreambooth.engine.manifest import check_environment, check_inputs
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.weights import open_trained
from dreambooth.engine.session import open_session
from dreambooth.engine.step import Meter, train_step
from dreambooth.errors import RunError, UserError
from dreambooth.job import Job
from dreambooth.runs.folder import RunFolder
from spoiling import ODD, Edit, edits, fuzz, places, spoil
from spoilt_checkpoint import DEEP, FILES, NEW, OLD, Change, apply, change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Listening(Quiet):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        assert message.encode()
        self.warnings.append(message)


def words(error: UserError) -> None:
    assert error.message.encode()
    assert error.hint


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A small run of four steps, finished, with checkpoints of steps 2 and 4. Copy, don't touch."""
    base = tmp_path_factory.mktemp("checkpoints")
    (base / "pictures").mkdir()
    for number, color in enumerate(["red", "blue"]):
        Image.new("RGB", (40, 40), color).save(base / f"pictures/{number}.png")
    job = Job(
        name="small", output=base, prior="none", samples={"every": 0}, trackers=["jsonl"],
        model={"kind": "stable_diffusion", "source": "builtin:tiny"},
        subject={"identifier": "ohwx", "class_noun": "dog"},
        data={"kind": "folder", "path": base / "pictures", "resolution": 32},
        freezing={"kind": "components", "train": ["text_encoder"]},
        callbacks=[{"kind": "time_limit", "minutes": 60}], log={"every": 1},
        checkpoints={"every": 2, "keep_best": {"metric": "train/loss"}},
        early_stop={"kind": "patience", "metric": "train/loss", "patience": 99},
        train={"steps": 4, "precision": "fp32", "ema": {"decay": 0.9}},
    )  # fmt: skip
    run(job)
    return job


@pytest.fixture
def copied(done: Job, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes a fresh copy of the run, for the job `again(...)`."""

    def make() -> Path:
        target = tmp_path / "small"
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(done.folder, target)

    return make


def again(done: Job, folder: Path, steps: int = 6) -> Job:
    """Return the job that goes on with a copy of the run."""
    longer = done.train.model_copy(update={"steps": steps})
    return done.model_copy(update={"output": folder.parent, "train": longer})


def equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Compare two checkpoints to the bit."""
    if one.numbers != other.numbers or one.tensors.keys() != other.tensors.keys():
        return False
    return all(
        named.keys() == other.tensors[stem].keys()
        and all(torch.equal(tensor, other.tensors[stem][name]) for name, tensor in named.items())
        for stem, named in one.tensors.items()
    )


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_is_named_and_the_checkpoint_before_is_used(
    done: Job, copied: Callable[[], Path], examples: int
) -> None:
    good = {name: files.load(done.folder / "checkpoints" / name) for name in (OLD, NEW)}
    seen: Counter[str] = Counter()
    folder = copied() / "checkpoints"

    def check(changes: list[Change]) -> None:
        shutil.rmtree(folder / NEW)
        shutil.copytree(done.folder / "checkpoints" / NEW, folder / NEW)
        apply(folder / NEW, changes, rehash=False)
        said: list[str] = []
        found = newest(folder, said.append)
        assert found is not None
        seen[found.folder.name] += 1
        assert equal(found, good[found.folder.name])
        if found.folder.name == OLD:
            assert len(said) == 1
            assert f"checkpoint {NEW} is damaged" in said[0]
            assert f"using {OLD}" in said[0]
            assert said[0].encode()
        else:
            assert said == []

    fuzz(examples, st.lists(change, min_size=1, max_size=3), check=check)
    assert seen[OLD] > examples // 2
    assert seen[NEW] > 0  # a file beside the checkpoint's own does no harm


@pytest.fixture(scope="module")
def session(done: Job) -> Iterator[Any]:
    """The run set up for a fifth step."""
    with ExitStack() as stack:
        devices = stack.enter_context(open_devices(done.train))
        precision = Precision("fp32", devices.device)
        ctx = EngineContext(done, devices.device, precision, done.folder, Quiet(), devices)
        opened = open_session(ctx, done.data.scan(ctx))
        stack.callback(opened.batches.reader.close)
        yield opened


@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_foreign_content_under_good_checksums_is_refused_in_words_or_trains(
    done: Job, session: Any, copied: Callable[[], Path], examples: int
) -> None:
    seen: Counter[str] = Counter()
    folder = copied() / "checkpoints"

    def check(changes: list[Change]) -> None:
        shutil.rmtree(folder / NEW)
        shutil.copytree(done.folder / "checkpoints" / NEW, folder / NEW)
        apply(folder / NEW, changes, rehash=True)
        said: list[str] = []
        found = newest(folder, said.append)
        assert found is not None
        try:
            restore(session.state, Meter(), found)
            train_step(session)
        except UserError as error:
            words(error)
            seen["refused"] += 1
        else:
            seen["named" if said else "trains"] += 1

    fuzz(examples, st.lists(change, min_size=1, max_size=2), check=check)
    assert min(seen["refused"], seen["trains"], seen["named"]) > examples // 30


def rewritten(name: str, how: str, place: float = 0.5) -> list[Change]:
    return [("tensors", name, place, how)]


FOREIGN: dict[str, list[Change]] = {
    "no tensors": [("tensors", "trainable.safetensors", 0, "empty")],
    "no moments": [("tensors", "optimizer.safetensors", 0, "empty")],
    "no average": [("delete", "ema.safetensors", 0, None)],
    "other shape": rewritten("trainable.safetensors", "reshape"),
    "one number, which copying would spread": rewritten("ema.safetensors", "scalar"),
    "whole numbers": rewritten("trainable.safetensors", "int"),
    "a moment of another shape": rewritten("optimizer.safetensors", "rows", 0.4),
    "a moment short": rewritten("optimizer.safetensors", "drop"),
    "a parameter renamed": rewritten("trainable.safetensors", "rename"),
    "state of another kind": [("text", STATE, 0, '{"train": [], "meter": 1, "callbacks": {}}')],
    "state of nothing": [("text", STATE, 0, "{}")],
    "another step": [("json", STATE, 0, [("put", 1, 3, 0)])],
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_a_run_refuses_foreign_content_in_words(
    done: Job, copied: Callable[[], Path], changes: list[Change]
) -> None:
    folder = copied()
    apply(folder / "checkpoints" / NEW, changes, rehash=True)
    with pytest.raises(RunError) as caught:
        run(again(done, folder))
    words(caught.value)
    assert NEW in caught.value.message or "--fresh" in caught.value.hint


KEPT: list[tuple[str, Any]] = [
    ("best", [1]), ("best", {"metric": "train/loss", "mode": "min", "step": "x"}),
    ("best", {"metric": "train/loss", "mode": "min", "step": 10**300, "value": 1, "seen": 1}),
    ("callbacks", [1]), ("callbacks", [{"kind": "patience"}]), ("scalars", {"train/loss": "x"}),
    ("callbacks", [{"kind": "patience", "state": {"metric": "train/loss", "steps": [1], "values": [
        None]}}]),
    ("callbacks", [{"kind": "patience", "state": {"metric": "train/loss", "steps": 1}}]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "value"), KEPT)
def test_what_watchers_kept_is_refused_in_words(
    done: Job, copied: Callable[[], Path], what: str, value: Any
) -> None:
    folder = copied()
    state = folder / "checkpoints" / NEW / STATE
    state.write_text(json.dumps({**json.loads(state.read_text()), what: value}))
    apply(state.parent, [], rehash=True)
    with pytest.raises(RunError, match="something else than this run would write") as caught:
        run(again(done, folder))
    words(caught.value)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_run_goes_on_from_the_checkpoint_before_one_that_is_damaged_or_moved_away(
    done: Job, copied: Callable[[], Path], damaged: bool
) -> None:
    straight = run(again(done, copied())).folder
    weights = load_file(straight / "checkpoints/step-000006/trainable.safetensors")
    folder = copied()
    if damaged:
        flip: Change = ("flip", "trainable.safetensors", 0.7, 3)
        apply(folder / "checkpoints" / NEW, [flip], rehash=False)
    else:
        (folder / "checkpoints" / NEW).rename(folder / NEW)
    listening = Listening()
    assert run(again(done, folder), reporter=listening).steps == 6
    assert [f"{NEW} is damaged" in line for line in listening.warnings] == [True] * damaged
    resumed = load_file(folder / "checkpoints/step-000006/trainable.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in resumed.items())


@pytest.mark.parametrize("how", ["empty", "reshape", "rename", "int"])
def test_drawing_from_foreign_content_is_refused_in_words(
    done: Job, copied: Callable[[], Path], how: str
) -> None:
    folder = copied()
    (folder / "manifest.json").unlink()  # no recorded result: the checkpoint is drawn from
    for name in ("ema.safetensors", "trainable.safetensors"):
        apply(folder / "checkpoints" / NEW, [("tensors", name, 0.5, how)], rehash=True)
    newest_only = done.checkpoints.model_copy(update={"keep_best": None})
    job = again(done, folder).model_copy(update={"checkpoints": newest_only})
    with open_devices(job.train) as devices:
        precision = Precision("fp32", devices.device)
        ctx = EngineContext(job, devices.device, precision, folder, Quiet(), devices)
        with pytest.raises(RunError) as caught:
            open_trained(ctx, RunFolder(folder))
    words(caught.value)


def test_links_are_neither_followed_nor_emptied(
    done: Job, copied: Callable[[], Path], tmp_path: Path
) -> None:
    """A checkpoint, or what looks half written, may be a link to somebody's own folder."""
    folder = copied()
    precious = tmp_path / "precious"
    shutil.copytree(folder / "checkpoints" / NEW, precious)
    (precious / ".old.1.new").mkdir()
    (folder / "checkpoints/step-000001").symlink_to(precious)
    (folder / "checkpoints/.away.1.new").symlink_to(precious)
    run(again(done, folder))  # rotates the old ones out, sweeps up what is half written
    assert sorted(f.name for f in precious.iterdir()) == sorted([*FILES, ".old.1.new"])
    assert not (folder / "checkpoints/step-000001").is_symlink()
    (folder / "checkpoints/step-000009").symlink_to(precious)
    said: list[str] = []
    found = newest(folder / "checkpoints", said.append)
    assert found is not None
    assert found.folder.name == "step-000006"
    assert "is a link" in said[0]


@pytest.mark.parametrize("examples", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_spoilt_manifest_is_refused_in_words_or_taken(
    done: Job, copied: Callable[[], Path], examples: int
) -> None:
    folder = RunFolder(copied())
    good = json.loads(folder.manifest.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    job = again(done, folder.path, steps=4)
    with open_devices(job.train) as devices:
        precision = Precision("fp32", devices.device)
        listening = Listening()

        def check(changes: list[Edit]) -> None:
            folder.manifest.write_text(json.dumps(spoil(good, changes)))
            ctx = EngineContext(job, devices.device, precision, folder.path, listening, devices)
            try:
                begun = begin(job, folder, devices, listening, None)
                check_environment(ctx, begun.manifest.get("machine", {}))
                check_inputs(ctx, begun.manifest, good)
            except UserError as error:
                words(error)
                seen["refused"] += 1
            else:
                seen["finished" if begun.finished else "goes on"] += 1

        fuzz(examples, edits, check=check)
    assert min(seen["refused"], seen["finished"]) > examples // 200
    assert seen["goes on"] or examples < 1000  # rare: an edit that takes the result away


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "[" * 50_000, "9" * 5000, DEEP, '{"result": []}', '{"job": 1}',
     '{"job": {"train": {"batch_size": "1"}}}', "\xff"],
    ids=range(12),
)  # fmt: skip
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.manifest.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"manifest\.json") as caught:
        folder.read_manifest()
    words(caught.value)


def test_every_odd_value_in_a_checkpoints_state_is_told_in_words(
    done: Job, session: Any, copied: Callable[[], Path]
) -> None:
    """Each number of the training's own, with each odd value in its place."""
    folder = copied() / "checkpoints" / NEW
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    good = {"train": state["train"], "meter": state["meter"]}
    found = files.load(folder)
    for number, _ in enumerate(places(good)):
        for value in ODD[:40]:
            numbers = json.loads(json.dumps(spoil(good, [("put", number, value, 0)])))
            try:
                restore(session.state, Meter(), Checkpoint(folder, found.tensors, numbers))
            except RunError as error:
                words(error)
