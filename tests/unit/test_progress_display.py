"""What a person sees of a run, without a terminal and in one."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from rich.console import Console

from dreambooth.cli.halfblocks import halfblocks
from dreambooth.cli.options import parse_size, with_sampler_options
from dreambooth.cli.progress import LiveReporter, duration, reporter_for, sparkline
from dreambooth.errors import JobError
from dreambooth.slots import component


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def drive(reporter):
    with reporter.progress("Encoding images", 2) as bar:
        bar.advance(2)
    with reporter.training(0, 20):
        for step in range(1, 21):
            reporter.step(step)
            if step % 10 == 0:
                reporter.scalars(step, {"train/loss": 0.5 / step, "train/lr": 1e-5})
        with reporter.progress("Drawing samples", 3) as bar:
            bar.advance()
    return reporter.console.file.getvalue()


def test_lines_where_there_is_no_terminal():
    out = console()
    text = drive(reporter_for(out))
    assert "step 10/20  loss 0.05  lr 1e-05" in text
    assert "\x1b" not in text


def test_a_terminal_gets_bars_with_a_sparkline():
    reporter = reporter_for(console(terminal=True))
    assert isinstance(reporter, LiveReporter)
    text = drive(reporter)
    assert "Training" in text
    assert "loss 0.0250 █▁" in text


def test_pictures_are_drawn_as_half_blocks(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png")
    text = halfblocks(tmp_path / "a.png", 80)
    assert text.plain == "▀▀▀▀\n▀▀▀▀\n"
    assert str(text.spans[0].style) == "#ff0000 on #ff0000"


def test_a_tall_picture_fits_the_terminal(tmp_path):
    Image.new("RGB", (60, 300), (0, 9, 0)).save(tmp_path / "a.png")
    rows = halfblocks(tmp_path / "a.png", 100, lines=20).plain.splitlines()
    assert len(rows) == 20
    assert {len(row) for row in rows} == {8}


def test_sparkline_spans_its_values():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▄█"
    assert sparkline([]) == ""
    assert sparkline([5.0]) == "▁"


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_sizes_are_read_as_height_by_width():
    assert parse_size("64") == (64, 64)
    assert parse_size("64x96") == (64, 96)
    assert parse_size(None) is None
    with pytest.raises(JobError, match="no size"):
        parse_size("big")


def test_sampler_options_are_checked():
    sampler = component("sampler", "cfg")
    assert with_sampler_options(sampler, steps=5, guidance_scale=None).steps == 5
    with pytest.raises(JobError, match="no option"):
        with_sampler_options(sampler, stops=5)
    with pytest.raises(JobError, match="steps"):
        with_sampler_options(sampler, steps=-1)
