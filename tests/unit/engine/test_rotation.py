"""Which checkpoints go, and that none goes before the new one is whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.engine.checkpoints import files, rotation
from dreambooth.engine.checkpoints.best import Best
from dreambooth.errors import RunError
from dreambooth.job import Checkpoints, KeepBest


def write(folder, options, step, best=None):
    tensors = {"trainable": {"unet.w": torch.full((3,), float(step))}}
    rotate = partial(rotation.superseded, options, written=step, best=best)
    return files.save(folder, step, tensors, {"step": step}, rotate)


def there(folder):
    return [step for step, _ in files.list_checkpoints(folder)]


def test_the_newest_every_nth_and_the_best_stay(tmp_path):
    options = Checkpoints(every=1, keep_last=2, keep_every=4)
    for step in range(1, 11):
        write(tmp_path, options, step, best=3 if step >= 3 else 1)
    assert there(tmp_path) == [3, 4, 8, 9, 10]
    write(tmp_path, options, 11, best=11)
    assert there(tmp_path) == [4, 8, 10, 11]


@given(
    steps=st.sets(st.integers(1, 60), min_size=1),
    keep_last=st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 20),
    data=st.data(),
)
def test_what_goes_is_old_unasked_for_and_enough_is_left(steps, keep_last, keep_every, data):
    options = Checkpoints(keep_last=keep_last, keep_every=keep_every)
    written = data.draw(st.sampled_from(sorted(steps)))
    best = data.draw(st.none() | st.sampled_from(sorted(steps)))
    gone = set(rotation.superseded(options, sorted(steps), written, best))
    up_to = [s for s in steps if s <= written]
    assert gone == {
        s
        for s in up_to
        if sum(s < other for other in up_to) >= keep_last
        and s != best
        and (keep_every is None or s % keep_every)
    }
    assert written not in gone


def test_checkpoints_of_an_abandoned_life_are_neither_counted_nor_touched(tmp_path):
    options = Checkpoints(keep_last=1)
    write(tmp_path, options, 9)
    for step in (1, 2):
        write(tmp_path, options, step)
    assert there(tmp_path) == [2, 9]


def test_keep_every_asks_for_checkpoints_of_its_own():
    options = Checkpoints(every=100, keep_every=250)
    due = [step for step in range(1, 1001) if rotation.is_due(options, step)]
    assert due == sorted({*range(100, 1001, 100), *range(250, 1001, 250)})


@pytest.mark.parametrize("stage", ["tensors", "checksums", "rename"])
def test_a_save_that_fails_deletes_nothing(tmp_path, monkeypatch, stage):
    options = Checkpoints(keep_last=1)
    for step, best in ((1, 1), (2, 1), (3, 1)):
        write(tmp_path, options, step, best)
    assert there(tmp_path) == [1, 3]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if stage == "tensors":
        monkeypatch.setattr(files, "save_file", full)
    elif stage == "checksums":
        monkeypatch.setattr(files, "write_json", full)
    else:
        monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(RunError, match="No space left"):
        write(tmp_path, options, 4, best=4)
    monkeypatch.undo()
    assert there(tmp_path) == [1, 3]
    assert [files.load(p).numbers["step"] for _, p in files.list_checkpoints(tmp_path)]
    assert len(list(tmp_path.iterdir())) == 2  # nor is a half-written one left lying


# --- the best ----------------------------------------------------------------------------------


def feed(best, *values, start=1):
    return [best.see(step, {"x": value}) for step, value in enumerate(values, start=start)]


def test_the_best_is_the_first_of_the_lowest_and_step_0_is_none():
    best = Best(KeepBest(metric="x"))
    assert feed(best, 0.1, 3.0, 2.0, 2.0, 2.5, start=0) == [False, True, True, False, False]
    assert (best.step, best.value, best.seen) == (2, 2.0, 4)
    assert best.why() == "step 2: x 2, the lowest of 4"


def test_the_highest_where_that_is_better_and_other_numbers_do_not_count():
    best = Best(KeepBest(metric="x", mode="max", export=False))
    assert feed(best, 1.0, float("nan"), 3.0, float("inf"), 2.0) == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert not best.see(6, {"y": 100.0})
    assert best.why() == "step 3: x 3, the highest of 3 (the last step is exported)"


def test_without_a_rule_nothing_is_kept():
    best = Best(None)
    assert not best.see(1, {"validation/loss": 0.0})
    assert (best.state(), best.outcome(), best.why()) == (None, None, "")


def test_the_best_goes_on_where_it_was(tmp_path):
    first = Best(KeepBest(metric="x"))
    feed(first, 3.0, 1.0, 2.0)
    write(tmp_path, Checkpoints(), 2)
    second = Best(KeepBest(metric="x", export=False))
    second.load(first.state(), tmp_path, pytest.fail)
    assert feed(second, 1.5, 0.5, start=4) == [False, True]
    assert second.seen == 5


def test_a_best_one_of_another_number_or_without_its_checkpoint_is_none(tmp_path):
    first = Best(KeepBest(metric="x"))
    feed(first, 3.0)
    warned = []
    for rule in (KeepBest(metric="y"), KeepBest(metric="x", mode="max")):
        other = Best(rule)
        other.load(first.state(), tmp_path, warned.append)
        assert other.step is None
    assert warned == []
    gone = Best(KeepBest(metric="x"))
    gone.load(first.state(), tmp_path, warned.append)
    assert gone.step is None
    assert "step 1, the best so far, is gone" in warned[0]
