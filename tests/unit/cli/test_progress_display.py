"""What a person sees of a run, without a terminal and in one."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from rich.console import Console

from dreambooth.cli.display.bars import SPARKS, Bars, Note, sparkline
from dreambooth.cli.display.halfblocks import halfblocks
from dreambooth.cli.display.progress import LiveReporter, reporter_for
from dreambooth.cli.sample import parse_size
from dreambooth.console import wrapped
from dreambooth.errors import JobError
from dreambooth.helpers.units import duration, file_size
from dreambooth.jobs.samplers import with_sampler_options
from dreambooth.plugins.kinds import component


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


LOSSES = tuple(0.1 + 0.01 * (k % 7) for k in range(24))
FULL = Note("loss 0.1333", "9.30 steps/s", "lr 0.00015", LOSSES, lambda: "12 min 20 s left")


def line(width, note=FULL):
    """Return the training bar as a terminal of that width shows it."""
    out = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    bars = Bars(console=out, auto_refresh=False)
    bars.add_task("Training", total=1200, completed=450, note=note)
    out.print(*bars.get_renderables())
    [text] = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", x) for x in out.file.getvalue().splitlines()]
    return text.rstrip()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 200])
def test_step_and_time_left_are_never_cut(width):
    text = line(width)
    assert len(text) < width
    assert "Training" in text
    assert "450/1200" in text
    assert text.endswith("12 min 20 s left")


def test_at_80_columns_sparks_give_way_first():
    assert "loss 0.1333" in line(80)
    assert "9.30 steps/s" in line(80)
    assert "━" in line(80)
    assert not set(SPARKS) & set(line(80))
    assert sparkline(LOSSES[-8:]) in line(100)
    assert sparkline(LOSSES) in line(200)
    assert "lr 0.00015" in line(200)


def test_losses_stay_in_the_scrollback_of_a_terminal():
    out = Console(file=io.StringIO(), force_terminal=True, width=80)
    reporter = reporter_for(out)
    numbers = {"loss": 0.12345, "loss_instance": 0.1, "loss_prior": 0.2, "grad_norm": 0.33333}
    logged = {f"train/{name}": value for name, value in numbers.items()} | {"train/lr": 1e-4}
    with reporter.training(0, 400):
        for step in range(1, 401):
            if step % 5 == 0:
                reporter.scalars(step, logged)
            reporter.step(step)
    stays = [x for x in out.file.getvalue().splitlines() if re.search(r"step \d+/400", x)]
    assert 15 <= len(stays) <= 25
    assert "step 400/400  loss 0.1235" in stays[-1]


def test_lines_break_between_words_and_paths_stay_whole():
    path = "/somewhere/" + "deep/" * 12 + "grid.png"
    text = wrapped(f"class images  {'drawing the rest costs training steps ' * 3}{path}", 14, 80)
    first, *others = text.split("\n")
    assert first.startswith("class images  drawing")
    assert all(len(x) <= 80 for x in (first, *others[:-1]))
    assert all(x.startswith(" " * 14) for x in others)
    assert text.endswith(path)


def test_files_are_sized_in_units_that_fit():
    sizes = (872, 579_300, 49_812_345, 2_132_000_000)
    assert [file_size(n) for n in sizes] == ["872 bytes", "579 kB", "49.8 MB", "2.13 GB"]


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
