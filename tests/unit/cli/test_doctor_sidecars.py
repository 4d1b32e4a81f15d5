"""Masks and captions written beside pictures: what is there stays, and training reads the rest."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from dreambooth import Captioner, Masker
from dreambooth.cli.doctor.looking import add_sidecars, look, source_of
from dreambooth.cli.doctor.mending import set_aside
from dreambooth.cli.doctor.sidecars import masks_among, with_subject
from dreambooth.errors import JobError
from onnx_files import write_mean_of_channels


class Left(Masker):
    """The left part of a picture."""

    kind: Literal["left"] = "left"
    share: float = 0.5

    def masks(self, images, device):
        made = []
        for image in images:
            mask = np.zeros((image.height, image.width), np.float32)
            mask[:, : round(image.width * self.share)] = 1.0
            made.append(mask)
        return made


class Sees(Captioner):
    """Says the same of every picture."""

    kind: Literal["sees"] = "sees"
    text: str = "a brown Dog\n on a dog bed"

    def captions(self, images, device):
        return [self.text] * len(images)


@pytest.fixture
def folder(tmp_path):
    """Pictures of two shapes, one of them turned by its EXIF data."""
    folder = tmp_path / "mine"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((300, 200))
    image.save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "b.jpg", exif=exif)
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "c.png")
    return folder


def add(folder, masker=None, captioner=None, job=None, **options):
    source = job.data if job else source_of(folder, 64)
    return add_sidecars(source, job, None, masker, captioner, **options)


def read(path):
    with Image.open(path) as image:
        return image.copy()


def names(made):
    return sorted(sidecar.path.name for sidecar in made.written)


def test_masks_are_of_the_pictures_size_and_training_reads_them(folder, small_job, ctx):
    made = add(folder, Left())
    assert names(made) == ["a.mask.png", "b.mask.png", "c.mask.png"]
    assert [(m.size, m.mode) for m in map(read, sorted(folder.glob("*.mask.png")))] == [
        ((300, 200), "L"), ((200, 300), "L"), ((200, 300), "L"),
    ]  # fmt: skip
    job = small_job(data={"path": folder, "resolution": 32, "mask": "file"})
    ctx.job = job
    items = job.data.scan(ctx).items
    assert [item.mask.name for item in items] == ["a.mask.png", "b.mask.png", "c.mask.png"]
    mask = job.data.load(items[0], 0, np.random.default_rng(0)).mask
    assert mask[:, :12].min() > 0.9
    assert mask[:, -12:].max() < 0.1
    assert ctx.warnings == []


def test_nothing_is_overwritten_without_force(folder):
    (folder / "a-mask.png").write_bytes(b"mine")
    (folder / "b.caption").write_text("mine")
    made = add(folder, Left(), Sees())
    assert names(made) == ["a.txt", "b.mask.png", "c.mask.png", "c.txt"]
    kept = {(r.about, r.names) for r in made.remarks if "kept it" in r.text}
    assert kept == {("mask", ("a.png",)), ("caption", ("b.jpg",))}
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert add(folder, Left(share=0.3), Sees(text="other")).written == []
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    forced = add(folder, Left(share=0.3), Sees(text="other"), force=True)
    assert names(forced) == ["a.txt", "b.mask.png", "b.txt", "c.mask.png", "c.txt"]
    assert (folder / "a-mask.png").read_bytes() == b"mine"
    [left] = [r for r in forced.remarks if "another name" in r.text]
    assert left.names == ("a.png",)
    assert (folder / "b.caption").read_text() == "mine"


def test_captions_in_a_table_count_as_there(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mine"}\n')
    assert names(add(folder, None, Sees())) == ["b.txt", "c.txt"]


def test_captions_name_the_subject(folder, small_job, ctx):
    job = small_job(data={"path": folder, "resolution": 32})
    add(folder, None, Sees(), job)
    assert (folder / "a.txt").read_text() == "a brown {identifier} {class_noun} on a dog bed\n"
    ctx.job = job
    item = job.data.scan(ctx).items[0]
    assert job.data.item_prompt(item, job.subject) == "a brown ohwx dog on a dog bed"
    assert with_subject("a cat", "dog") == "a photo of {identifier} {class_noun}, a cat"
    assert with_subject("hotdogs", "dog").startswith("a photo of {identifier}")
    assert with_subject("a cat", None) == "a photo of {identifier} {class_noun}, a cat"


def test_odd_masks_are_named_and_empty_ones_not_written(folder):
    said = {r.text for r in add(folder, Left(share=0.02)).remarks}
    assert "its mask covers little of it (2%)" in said
    said = {r.text for r in add(folder, Left(share=0.9), force=True).remarks}
    assert "its mask covers much of it (90%)" in said
    for path in folder.glob("*.mask.png"):
        path.unlink()
    made = add(folder, Left(share=0.0))
    assert made.written == []
    assert sum("no subject was found" in r.text for r in made.remarks) == 3


def test_an_empty_caption_is_not_written(folder):
    made = add(folder, None, Sees(text=" \n"))
    assert made.written == []
    assert sum("nothing was said" in r.text for r in made.remarks) == 3


def test_two_pictures_of_one_name_get_captions_of_their_own_and_no_mask(folder):
    Image.new("RGB", (64, 64), "red").save(folder / "a.jpg")
    made = add(folder, Left(), Sees())
    assert {"a.jpg.txt", "a.png.txt"} < set(names(made))
    assert not {"a.mask.png"} & set(names(made))
    assert {r.names for r in made.remarks if "share a mask's name" in r.text} == {
        ("a.jpg",),
        ("a.png",),
    }


def test_the_options_that_read_them_are_told(folder, small_job):
    job = small_job(data={"path": folder, "resolution": 32, "captions": "none"})
    said = [r.text for r in add(folder, Left(), Sees(), job).remarks]
    assert "captions are read with data: {captions: auto}" in said
    job = small_job(data={"path": folder, "resolution": 32, "mask": "file", "captions": "caption"})
    made = add(folder, None, Sees(), job, force=True)
    assert not any("read with" in r.text for r in made.remarks)
    assert names(made) == ["a.caption", "b.caption", "c.caption"]


def test_masks_that_would_train_as_pictures_are_told_and_not_looked_at(folder, small_job):
    add(folder, Left())
    report = look(source_of(folder, 64))
    assert report.pictures == 3
    [remark] = [r for r in report.remarks if r.about == "mask"]
    assert (remark.mark, remark.names) == ("look", ("a.mask.png", "b.mask.png", "c.mask.png"))
    plain = small_job(data={"path": folder, "resolution": 32})
    [remark] = [r for r in look(plain.data, plain).remarks if r.about == "mask"]
    assert (remark.mark, remark.names[0]) == ("problem", "a.mask.png")
    job = small_job(data={"path": folder, "resolution": 32, "mask": "file"})
    assert not [r for r in look(job.data, job).remarks if r.about == "mask"]
    assert masks_among(["a.mask.png", "b.png", "x-mask.png"]) == []


def test_a_mask_is_moved_aside_with_its_picture(folder):
    add(folder, Left())
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes())
    (folder / "d.mask.png").write_bytes((folder / "c.mask.png").read_bytes())
    moved = {path.name for path, _ in set_aside(look(source_of(folder, 64)))}
    assert moved == {"d.png", "d.mask.png"}


def test_the_command_writes_and_tells(folder, dbt, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra masks)")
    network = write_mean_of_channels(tmp_path / "mean.onnx")
    arguments = ("doctor", folder, "--resolution", 64, "--masks", "u2net", "--model", network)
    said = dbt(*arguments, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "written  a.mask.png: the subject is " in said.stdout
    assert "masks: a job reads them with data: {mask: file}" in said.stdout
    data = json.loads(dbt(*arguments, "--force", "--json", cwd=tmp_path).stdout)
    assert [row["file"].rpartition("/")[2] for row in data["written"]] == [
        "a.mask.png", "b.mask.png", "c.mask.png",
    ]  # fmt: skip


def test_wrong_options_are_told(folder, dbt, tmp_path):
    both = ("--masks", "u2net", "--captions", "blip", "--model", "x")
    for options, words in (
        (both, "--model is of masks or of captions: make one after the other"),
        (("--model", "x"), "--model is of masks or of captions"),
        (
            ("--masks", "u2nett"),
            '--masks u2nett: unknown masker kind "u2nett"; did you mean "u2net"',
        ),
        (("--masks", "u2net"), '--masks u2net: needs "model"; the network as an ONNX file'),
        (("--masks", "null"), "--masks"),
    ):
        said = dbt("doctor", folder, *options, cwd=tmp_path)
        assert said.returncode == 2, (options, said.stdout)
        assert words in said.stderr, said.stderr
    assert not list(folder.glob("*mask*"))


def test_pictures_that_are_no_files_are_told(small_job):
    from dreambooth.cli.doctor.sidecars import make_masks
    from dreambooth.interfaces import Item, Scan

    scan = Scan((Item("a", None, "0" * 64, (8, 8)),))
    with pytest.raises(JobError, match="a is no file"):
        make_masks(Left(), scan, None, None)
