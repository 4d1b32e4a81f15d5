"""The page in a browser, as people meet it: from disk, offline, by keyboard, phone and paper."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_folders import write_run

from dreambooth_plugins.report.writing import made
from tools import PAGE, chromium

NASTY = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\'"&\u202e'
NAMES = ("<img src=x onerror=alert(2)>\"'.png", "\x1b[31m&quot;<script>alert(3)<.png")
MB = 1_000_000

pytestmark = pytest.mark.browser


def long_run(root: Path) -> Path:
    """Return a run of 10,000 steps with 40 prompts; twelve prompts have grainy pictures."""
    prompts = tuple(f"a photo of a ck fox, scene {i} of many" for i in range(40))
    run = write_run(
        root, steps=10_000, every=10_000, prompts=prompts, per_prompt=1, side=512, measured=False
    )
    last = run / "samples" / "step-010000"
    for step in range(1000, 10_000, 1000):
        folder = run / "samples" / f"step-{step:06d}"
        shutil.copytree(last, folder, copy_function=os.link)
        for path in sorted(folder.glob("*.png"))[:12]:
            with Image.open(path) as plain:
                grain = Image.effect_noise(plain.size, 70).convert("RGB")
                grainy = Image.blend(plain.convert("RGB"), grain, 0.2)
            path.unlink()
            grainy.save(path, compress_level=1)
    return run


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Open every page once and return what was seen; pictures of the pages lie beside."""
    root = tmp_path_factory.mktemp("pages")
    wanted = os.environ.get("REPORT_SHOTS")  # a folder to look at them in
    shots = Path(wanted) if wanted else root / "shots"
    shots.mkdir(exist_ok=True)
    for name in ("one", "nasty", "long"):
        (root / name).mkdir()
    first = write_run(root / "one", side=256)
    second = write_run(root / "one", "my-fox-slow", side=256, changes={"optimizer.lr": 1e-5})
    prompts = (NASTY, "a ck fox")
    nasty = write_run(
        root / "nasty", side=64, steps=200, prompts=prompts, captions=(NASTY,), names=NAMES
    )
    runs = {"run": [first], "several": [first, second], "nasty": [nasty]}
    runs["long"] = [long_run(root / "long")]
    pages = {}
    for name, folders in runs.items():
        pages[name] = str(root / f"{name}.html")
        Path(pages[name]).write_text(made(folders, 8 * MB)[0], encoding="utf-8")
    command = ["node", str(Path(__file__).with_name("browser.mjs")), str(PAGE), str(chromium())]
    command += [json.dumps(pages), str(shots)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["bytes"] = {name: Path(path).stat().st_size for name, path in pages.items()}
    return found


def test_it_opens_from_disk_without_network_or_complaint(seen: dict[str, Any]) -> None:
    for name in ("working", "nasty", "compared"):
        assert seen[name]["said"] == []
        assert seen[name]["blocked"] == []
    assert seen["working"]["broken"] == 0


def test_the_slider_moves_every_picture(seen: dict[str, Any]) -> None:
    assert seen["working"]["moved"] == [True] * 4
    assert seen["working"]["step"].startswith("Step 400")
    assert seen["working"]["back"]
    assert seen["working"]["led"].startswith("Step 800")


def test_keys_work_in_the_large_view(seen: dict[str, Any]) -> None:
    found = seen["working"]
    assert found["prompts"][0] == "a photo of a ck fox in the snow"
    assert found["prompts"][1] == "an oil painting of a ck fox reading a newspaper"
    assert found["largeMoved"]
    assert found["wiping"] == 2
    assert found["cut"] == "25%"
    assert "Starred" in found["starred"]
    assert found["side"] == 2
    assert found["closed"]


def test_hovering_over_a_curve_shows_its_values(seen: dict[str, Any]) -> None:
    before, after = seen["working"]["legend"]
    assert before != after
    assert "0.1" in after


def test_the_numbers_can_be_taken_along(seen: dict[str, Any]) -> None:
    assert seen["working"]["downloads"] == 2
    assert seen["working"]["csv"].startswith("curve,line,step,value\r\n")


def test_axe_finds_nothing_serious(seen: dict[str, Any]) -> None:
    assert {name: found for name, found in seen["axe"].items() if found} == {}


@pytest.mark.parametrize("name", ["run", "several"])
def test_it_fits_every_width_in_both_themes(seen: dict[str, Any], name: str) -> None:
    for size, found in seen["looks"][name].items():
        assert found["over"] <= 0, size
        assert found["said"] == [], size
        if size.startswith("360"):
            assert found["small"] == 0, size


def test_without_scripts_it_still_reads(seen: dict[str, Any]) -> None:
    found = seen["plain"]
    for words in ("Good likeness at step", "It is beginning to copy", "a photo of a ck fox in the"):
        assert words in found["text"]
    assert found["posters"] >= 3
    assert found["pictures"] >= 10


def test_strange_texts_are_shown_and_do_nothing(seen: dict[str, Any]) -> None:
    assert seen["nasty"]["alerts"] == []
    assert seen["nasty"]["rows"][0].startswith('</script><script>alert("x")</script>')
    assert seen["nasty"]["large"].startswith('</script><script>alert("x")</script>')
    assert NAMES[0] in seen["nasty"]["text"]
    assert "&quot;<script>alert(3)<.png" in seen["nasty"]["text"]
    assert "\x1b" not in seen["nasty"]["text"]


def test_several_runs_stand_side_by_side(seen: dict[str, Any]) -> None:
    assert seen["compared"]["columns"] == 2
    assert "my-fox-slow" in seen["compared"]["choices"]


def test_one_can_choose_without_knowing_whose_picture_it_is(seen: dict[str, Any]) -> None:
    assert seen["compared"]["hidden"]
    counts = re.search(r"You chose: my-fox (\d), my-fox-slow (\d)", seen["compared"]["chosen"])
    assert counts
    assert int(counts[1]) + int(counts[2]) == 3


def test_a_long_run_keeps_to_the_size_and_opens_within_a_second(
    seen: dict[str, Any], emit: Any
) -> None:
    assert seen["bytes"]["long"] <= 8 * MB
    assert seen["long"]["rows"] == 12
    assert seen["long"]["said"] == []
    assert seen["bytes"]["long"] >= 3 * MB  # it is a heavy one
    # The page's own time: other programs on the machine do not count.
    busy = sorted(round(row["busy"]) for row in seen["long"]["times"])
    loaded = sorted(round(row["loaded"]) for row in seen["long"]["times"])
    emit("long report: bytes", seen["bytes"]["long"])
    emit("ms of the page's thread to its pictures", busy)
    emit("ms by the clock to load", loaded)
    assert busy[0] < 1000


def test_on_paper_it_is_a_few_pages(seen: dict[str, Any]) -> None:
    assert 1 <= seen["pages"] <= 6
