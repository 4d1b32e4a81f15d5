"""The untrained base's pictures, prompts with settings of their own, and the sheet over time."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from dreambooth.engine.loop import run
from dreambooth.engine.results.contact import sample_sets
from dreambooth.helpers.sheets import Row, contact_sheet, shown

SMALL = {"every": 2, "per_prompt": 2}


def lines(result):
    return (result.folder / "metrics.jsonl").read_bytes()


def record(result, step):
    return json.loads((result.folder / f"samples/step-{step:06d}/prompts.json").read_text())


def test_the_untrained_base_is_drawn_from_the_same_seeds_and_training_does_not_move(small_job):
    without = run(small_job(name="without"))
    with_them = run(small_job(name="with", samples=SMALL))
    assert lines(without) == lines(with_them)
    before, after = record(with_them, 0), record(with_them, 4)
    assert [(p["prompt"], p["seed"]) for p in before] == [(p["prompt"], p["seed"]) for p in after]
    assert len(before) == 4
    one, other = (
        Image.open(with_them.folder / f"samples/step-{step:06d}/000.png") for step in (0, 4)
    )
    assert one.tobytes() != other.tobytes()


def test_step_zero_shows_the_base_itself(small_job, ctx):
    from dreambooth.engine.results.samples import draw_entries

    job = small_job(samples=SMALL)
    result = run(job)
    ctx.job = job
    model = job.model.open(ctx)
    schedule = job.scheduler.open(model.info)
    drawn = draw_entries(ctx, model, schedule, job.samples.entries, 2)
    for i, picture in enumerate(drawn):
        with Image.open(result.folder / f"samples/step-000000/{i:03d}.png") as image:
            assert image.tobytes() == picture.image.tobytes()


def test_a_prompt_has_its_own_seed_size_and_settings(small_job):
    text = {"prompt": "a {class_noun}", "seed": 11, "size": [32, 64], "negative": "x", "steps": 3}
    job = small_job(samples={**SMALL, "prompts": ["a {class_noun}", text]})
    result = run(job)
    found = record(result, 4)
    assert [p["seed"] for p in found[2:]] == [11, 12]
    assert found[0]["seed"] != 11
    with Image.open(result.folder / "samples/step-000004/002.png") as image:
        assert image.size == (64, 32)
    with Image.open(result.folder / "samples/step-000004/000.png") as image:
        assert image.size == (32, 32)


def test_the_sheet_has_photographs_prompts_and_steps_and_goes_to_trackers(small_job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(small_job(samples=SMALL, trackers=["tensorboard"]))
    with Image.open(result.folder / "contact-sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
        width = sheet.width
    places = [
        place_of(pixels, Image.open(result.folder / f"samples/step-{step:06d}/{number}.png"))
        for step in (0, 2, 4)
        for number in ("000", "002")  # the first picture of each prompt
    ]
    rows, columns = {y for y, _ in places}, [x for _, x in places]
    assert len(rows) == 2
    assert columns == sorted(columns)  # steps from left to right
    assert len(set(columns)) == 3
    assert width > 4 * 192  # photographs, untrained, two steps
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Images("contact_sheet")] == [0, 2, 4]


def place_of(sheet, picture):
    """Return where the one enlarged copy of a picture lies on a sheet: (top, left)."""
    enlarged = np.asarray(shown(picture.convert("RGB"), 192))
    assert enlarged.shape == (192, 192, 3)
    [place] = [
        (y, x)
        for y, x in np.argwhere((sheet == enlarged[0, 0]).all(-1))
        if np.array_equal(sheet[y : y + 192, x : x + 192], enlarged)
    ]
    return place


def test_sets_of_samples_are_sorted_by_step_however_long_its_number_is(tmp_path):
    for step in (1_000_000, 200, 999_999, 0, 1000):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / "drawn-1").mkdir()
    assert [step for step, _ in sample_sets(tmp_path)] == [0, 200, 1000, 999_999, 1_000_000]


def test_resuming_redraws_nothing_and_keeps_step_zero(small_job):
    run(small_job(samples=SMALL))
    longer = run(small_job(samples=SMALL, train={"steps": 6}))
    straight = run(small_job(name="straight", samples=SMALL, train={"steps": 6}))
    for step in (0, 2, 4, 6):
        name = f"samples/step-{step:06d}/003.png"
        with Image.open(longer.folder / name) as one, Image.open(straight.folder / name) as other:
            assert one.tobytes() == other.tobytes()


def test_captions_of_strangers_cannot_break_a_sheet():
    image = Image.new("RGB", (64, 64), "red")
    wild = "\x1b[31m</script>" + "long " * 400 + "\u202e"
    sheet = contact_sheet(["a\nb"], [Row(wild, [image, None])], [image] * 9, wild, wild)
    assert sheet.height < 600
    assert torch.from_numpy(np.array(sheet)).unique().numel() > 2
