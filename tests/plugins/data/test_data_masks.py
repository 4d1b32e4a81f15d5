"""Subject masks of a folder: found, checked, and cut exactly as their pictures are."""

from __future__ import annotations

from types import SimpleNamespace
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import Subject
from dreambooth_plugins.data.folder import Folder

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "masked"
    folder.mkdir()
    return folder


@pytest.fixture
def scan(ctx):
    def of(source):
        ctx.job = SimpleNamespace(subject=Subject(identifier="ohwx", class_noun="dog"))
        return source.scan(ctx)

    return of


def subject(size=(48, 40), box=(4, 8, 20, 24)):
    """Return a picture that is red where the subject is, and its mask."""
    picture = Image.new("RGB", size, BLUE)
    picture.paste(RED, box)
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return picture, mask


def save_pair(root, stem, mask_name, **options):
    picture, mask = subject(**options)
    picture.save(root / f"{stem}.png")
    mask.save(root / mask_name)


def folder(root, **options):
    return Folder(path=root, resolution=(32, 32), **options)


def is_red(sample):
    return sample.pixels[..., 0] > 127


@pytest.mark.parametrize("name", ["a.mask.png", "a-mask.png", "a-mask.webp", "a-mask.JPG"])
def test_a_mask_file_belongs_to_the_picture_of_its_name(root, scan, name):
    save_pair(root, "a", name)
    found = scan(folder(root, mask="file"))
    [item] = found.items
    assert item.id == "a.png"
    assert item.mask == root / name
    assert found.rejected == ()


def test_without_the_option_files_named_as_masks_train_and_are_warned_of(root, scan, ctx):
    save_pair(root, "a", "a-mask.png")
    found = scan(folder(root))
    assert [item.id for item in found.items] == ["a-mask.png", "a.png"]
    assert [w for w in ctx.warnings if "a-mask.png" in w and "data.mask: file" in w]
    assert folder(root).load(found.items[1], 0, None).mask is None


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(48, 40), (40, 56), (200, 64)])
def test_the_mask_is_cut_and_mirrored_as_its_picture(root, scan, size, flip):
    save_pair(root, "a", "a.mask.png", size=size, box=(4, 8, 24, 30))
    source = folder(root, mask="file", flip=flip)
    [item] = scan(source).items
    for variant in range(source.variants(item)):
        sample = source.load(item, variant, None)
        assert sample.mask.shape == (32, 32)
        assert sample.mask.dtype == np.float32
        assert 0.0 <= sample.mask.min() <= sample.mask.max() <= 1.0
        assert np.array_equal(sample.mask > 0.5, is_red(sample))


def test_random_crops_take_the_mask_along(root, scan):
    save_pair(root, "a", "a.mask.png", size=(96, 64), box=(20, 10, 60, 50))
    source = folder(root, mask="file", crop="random", flip=True)
    [item] = scan(source).items
    shares = set()
    for seed in range(8):
        sample = source.load(item, None, np.random.default_rng(seed))
        assert np.array_equal(sample.mask > 0.5, is_red(sample))
        shares.add(round(float(sample.mask.mean()), 4))
    assert len(shares) > 1


def test_the_alpha_channel_is_a_mask(root, scan):
    picture, mask = subject()
    picture.putalpha(mask)
    picture.save(root / "a.png")
    source = folder(root, mask="alpha")
    [item] = scan(source).items
    sample = source.load(item, 0, None)
    assert item.mask is None
    white = (sample.pixels > 127).all(-1)
    assert np.array_equal(sample.mask > 0.5, ~white)


def test_auto_takes_the_file_before_the_alpha_channel(root, scan, ctx):
    picture, mask = subject()
    both = picture.copy()
    both.putalpha(mask.point(lambda v: 255 - v))
    both.save(root / "both.png")
    mask.save(root / "both.mask.png")
    picture.putalpha(mask)
    picture.save(root / "clear.png")
    Image.new("RGB", (48, 40), RED).save(root / "plain.png")
    source = folder(root, mask="auto")
    items = {item.id: item for item in scan(source).items}
    cut = {name: source.load(item, 0, None).mask for name, item in items.items()}
    assert np.array_equal(cut["both.png"], cut["clear.png"])
    assert cut["plain.png"] is None
    assert [w for w in ctx.warnings if "1 of 3 pictures have no mask" in w and "plain.png" in w]


def test_a_smaller_mask_of_the_same_shape_is_enlarged(root, scan):
    save_pair(root, "a", "a.mask.png", size=(96, 80), box=(16, 16, 48, 48))
    Image.open(root / "a.mask.png").resize((48, 40)).save(root / "a.mask.png")
    source = folder(root, mask="file")
    [item] = scan(source).items
    sample = source.load(item, 0, None)
    assert np.mean((sample.mask > 0.5) != is_red(sample)) < 0.03


def test_a_turned_picture_has_an_upright_mask(root, scan):
    picture, mask = subject()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(root / "a.jpg", exif=exif, quality=95, subsampling=0)
    mask.save(root / "a.mask.png")
    source = folder(root, mask="file")
    [item] = scan(source).items
    sample = source.load(item, 0, None)
    assert np.mean((sample.mask > 0.5) != is_red(sample)) < 0.01


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (40, 48), 255), "another shape"),
        (Image.new("L", (48, 40), 0), "all black"),
        (None, "not an image"),
    ],
    ids=["shape", "black", "broken"],
)
def test_a_picture_with_an_unusable_mask_is_left_out_and_named(root, scan, mask, reason):
    save_pair(root, "good", "good.mask.png")
    subject()[0].save(root / "bad.png")
    if mask is None:
        (root / "bad.mask.png").write_bytes(b"no picture")
    else:
        mask.save(root / "bad.mask.png")
    found = scan(folder(root, mask="file"))
    assert [item.id for item in found.items] == ["good.png"]
    [rejected] = found.rejected
    assert rejected.id == "bad.png"
    assert reason in rejected.reason
    with pytest.raises(JobError, match=reason):
        scan(folder(root, mask="file", broken="refuse"))


def test_a_mask_without_its_picture_is_reported(root, scan):
    save_pair(root, "a", "a.mask.png")
    subject()[1].save(root / "gone-mask.png")
    found = scan(folder(root, mask="file"))
    assert [(r.id, "usable picture named gone" in r.reason) for r in found.rejected] == [
        ("gone-mask.png", True)
    ]


@pytest.mark.parametrize("kind", ["auto", "alpha", "file"])
def test_a_folder_without_any_mask_is_refused(root, scan, kind):
    subject()[0].save(root / "a.png")
    with pytest.raises(JobError, match=r"no picture in .* has a mask"):
        scan(folder(root, mask=kind))


def test_validate_sees_that_no_mask_file_is_there(root, small_job):
    subject()[0].save(root / "a.png")
    job = small_job(data={"kind": "folder", "path": root, "mask": "file", "resolution": 32})
    assert [p.at for p in job.data.check(job, None)] == [("data", "mask")]
    subject()[1].save(root / "a-mask.png")
    assert list(job.data.check(job, None)) == []


def test_a_mask_that_changed_after_the_scan_stops_the_run(root, scan):
    save_pair(root, "a", "a.mask.png")
    source = folder(root, mask="file")
    [item] = scan(source).items
    Image.new("L", (48, 40), 255).save(root / "a.mask.png")
    with pytest.raises(RunError, match=r"a\.mask\.png has changed"):
        source.load(item, 0, None)


def test_only_masks_that_are_read_are_part_of_the_cache_key(root):
    assert "mask" not in folder(root).pixels_key()
    assert folder(root, mask="alpha").pixels_key() != folder(root, mask="file").pixels_key()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_mask_belongs_to_its_picture_however_accents_are_stored(root, scan, form):
    save_pair(root, normalize(form, "é"), normalize({"NFC": "NFD"}.get(form, "NFC"), "é.mask.png"))
    [item] = scan(folder(root, mask="file")).items
    assert item.mask is not None
    assert item.id == normalize(form, "é.png")
