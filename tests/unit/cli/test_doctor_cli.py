"""The doctor names each thing that is wrong, and nothing in good pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from dreambooth.cli.doctor.looking import look, source_of
from dreambooth.cli.doctor.mending import ASIDE, set_aside
from dreambooth.cli.doctor.pictures import SOFT, softness


def picture(seed, size=(256, 256)):
    """A picture with large shapes and fine grain, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    large = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = np.asarray(large.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-25, 26, image.shape)
    return Image.fromarray((image + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture
def good(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    return folder


def found(folder, resolution=256):
    return look(source_of(folder, resolution))


def about(report):
    return {(r.mark, r.about): set(r.names) for r in report.remarks}


def test_good_pictures_have_nothing_to_remark(good):
    assert about(found(good)) == {("good", "amount"): set()}


def test_each_fault_is_named_with_its_pictures(good):
    pytest.importorskip("imagehash")
    (good / "copy.png").write_bytes((good / "0.png").read_bytes())
    (good / "torn.png").write_bytes((good / "1.png").read_bytes()[:3000])
    (good / "notes.md").write_text("x")
    ImageOps.mirror(Image.open(good / "2.png")).save(good / "mirror.png")
    picture(10).resize((60, 60)).save(good / "tiny.png")
    picture(11).filter(ImageFilter.GaussianBlur(4)).save(good / "soft.png")
    picture(12, (512, 256)).save(good / "wide.png")
    picture(13).save(good / "named.jpg", "PNG")
    said = about(found(good))
    assert said.pop(("problem", "broken")) == {"torn.png"}
    assert said.pop(("look", "broken")) == {"notes.md"}
    assert said.pop(("problem", "duplicate")) == {"0.png", "copy.png"}
    assert said.pop(("look", "alike")) == {"2.png", "mirror.png"}
    assert said.pop(("problem", "tiny")) == {"tiny.png"}
    assert said.pop(("look", "soft")) == {"soft.png"}
    assert said.pop(("look", "cut")) == {"wide.png"}
    assert said.pop(("look", "suffix")) == {"named.jpg (is PNG)"}
    assert said.pop(("look", "shapes")) == set()
    assert said == {("good", "amount"): set()}


def test_a_blurred_ground_does_not_make_a_picture_soft():
    sharp = picture(3, (512, 512))
    blurred = sharp.filter(ImageFilter.GaussianBlur(4))
    assert softness(blurred) < SOFT < softness(sharp)
    blurred.paste(sharp.crop((150, 150, 400, 400)), (150, 150))
    assert softness(blurred) > SOFT


def test_fix_moves_aside_and_deletes_nothing(good):
    (good / "copy.png").write_bytes((good / "0.png").read_bytes())
    (good / "copy.txt").write_text("its caption")
    (good / "notes.md").write_text("x")
    (good / "torn.png").write_bytes((good / "1.png").read_bytes()[:3000])
    before = sorted(p.read_bytes() for p in good.rglob("*") if p.is_file())
    moved = set_aside(found(good))
    assert {to.name for _, to in moved} == {"copy.png", "copy.txt", "torn.png"}
    assert sorted(p.read_bytes() for p in good.rglob("*") if p.is_file()) == before
    assert (good / "notes.md").is_file()
    assert about(found(good)).keys() == {("good", "amount"), ("look", "broken")}
    (good / "copy.png").write_bytes((good / "0.png").read_bytes())
    set_aside(found(good))
    assert (good / ASIDE / "copy.1.png").is_file()


def test_captions_identifier_and_passes_are_looked_at_with_a_job(good, small_job):
    (good / "0.txt").write_text("a photo of a dog")
    (good / "1.txt").write_text("a photo of {identifier} dog")
    job = small_job(
        data={"path": good, "resolution": 32},
        subject={"identifier": "a very long name", "class_noun": "dog"},
        train={"steps": 4},
    )
    said = {(r.mark, r.about): r for r in look(job.data, job).remarks}
    assert said["problem", "caption"].names == ("0.png",)
    assert said["look", "caption"].names == ("2.png", "3.png")
    assert "tokens to this model" in said["look", "identifier"].text
    assert "4 steps see each of the 4 pictures about 1 times: few" in said["look", "amount"].text


def test_the_command_prints_the_worst_first_and_json_alone(good, dbt, tmp_path):
    (good / "torn.png").write_bytes((good / "1.png").read_bytes()[:3000])
    shown = dbt("doctor", good, "--resolution", 256, cwd=tmp_path)
    assert shown.returncode == 0
    rows = [line for line in shown.stdout.splitlines() if line.split(" ")[0] in {"problem", "good"}]
    assert rows[0].startswith("problem  torn.png: not used:")
    assert rows[-1] == "good     4 usable pictures"
    with Image.open(tmp_path / "doctor-crops.png") as sheet:
        assert sheet.width >= 4 * 256
    data = json.loads(dbt("doctor", good, "--json", "--resolution", 256, cwd=tmp_path).stdout)
    assert data["pictures"] == 4
    assert data["remarks"][0]["names"] == ["torn.png"]
    fixed = dbt("doctor", good, "--fix", "--resolution", 256, cwd=tmp_path)
    assert f"moved    torn.png to {ASIDE}" in fixed.stdout


def test_a_folder_without_pictures_is_told(tmp_path, dbt):
    (tmp_path / "empty").mkdir()
    answer = dbt("doctor", "empty", cwd=tmp_path)
    assert answer.returncode == 2
    assert "no pictures" in answer.stderr or "empty" in answer.stderr


def test_a_run_shows_the_two_worst_lines(good, small_job, dbt, tmp_path):
    from dreambooth.jobs.loading import dump_job

    (good / "torn.png").write_bytes((good / "1.png").read_bytes()[:3000])
    job = small_job(data={"path": good, "resolution": 32}, train={"steps": 1})
    (tmp_path / "job.yaml").write_text(dump_job(job))
    said = dbt("run", "job.yaml", "--dry-run", cwd=tmp_path).stdout
    assert "problem  torn.png: not used:" in said
    assert said.count("problem  ") + said.count("look     ") == 2
