"""The folder of pictures: what it finds, refuses, says, and hands to the model."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth.errors import JobError
from dreambooth.interfaces import Subject
from dreambooth_plugins.data import file_types, images, register_data_sources, scanning
from dreambooth_plugins.data.folder import Folder


class Ctx:
    """As much of a context as a data source looks at."""

    def __init__(self) -> None:
        self.job = SimpleNamespace(subject=Subject(identifier="ohwx", class_noun="dog"))
        self.warnings: list[str] = []
        self.bars: list[list[Any]] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def progress(self, label: str, total: int):
        bar = [label, total, 0]
        self.bars.append(bar)

        def advance(count: int = 1) -> None:
            bar[2] += count

        yield SimpleNamespace(advance=advance)


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, seed: int = 0, height: int = 24, width: int = 32, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)).save(path, **options)
    return path


def scan(path: Path, **options: object):
    ctx = Ctx()
    return Folder(path=path, resolution=options.pop("resolution", 16), **options).scan(ctx), ctx


def reasons(result: Any) -> dict[str, str]:
    return {row.id: row.reason for row in result.rejected}


def problems(path: Path, has_rows: bool = True, **options: object) -> list[Any]:
    job = SimpleNamespace(
        subject=Ctx().job.subject, prior=SimpleNamespace(has_rows=lambda: has_rows)
    )
    return list(Folder(path=path, **options).check(job, None))


RNG = np.random.default_rng


def test_the_plugin_offers_the_folder() -> None:
    assert register_data_sources() == [Folder]


def test_config_and_check_import_no_torch_numpy_or_pillow(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    code = (
        "import sys; from types import SimpleNamespace as N\n"
        "from dreambooth_plugins.data import register_data_sources as r\n"
        "from dreambooth.interfaces import Subject\n"
        "job = N(subject=Subject(identifier='a', class_noun='b'), prior=N(has_rows=lambda: True))\n"
        f"assert not list(r()[0](path={str(tmp_path)!r}).check(job, None))\n"
        "print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pictures_are_sorted_and_described(tmp_path: Path) -> None:
    for name, seed in (("b.png", 1), ("a.jpg", 2), ("c.webp", 3)):
        save(tmp_path / name, seed)
    result, ctx = scan(tmp_path)
    assert [item.id for item in result.items] == ["a.jpg", "b.png", "c.webp"]
    assert result.rejected == ()
    assert ctx.warnings == []
    item = result.items[1]
    assert item.path == tmp_path / "b.png"
    assert item.size == (24, 32)
    assert item.sha256 == hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()


def test_size_is_as_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", exif=exif)
    assert scan(tmp_path)[0].items[0].size == (32, 24)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save(tmp_path / "really_jpeg.png", format="JPEG")
    save(tmp_path / "no_suffix", format="PNG")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    result, _ = scan(tmp_path)
    assert [item.id for item in result.items] == ["no_suffix", "really_jpeg.png"]
    assert "named .jpg" in reasons(result)["page.jpg"]


def test_what_is_no_picture_is_listed_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    save(tmp_path / "._good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "shot.nef").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "notes.md").write_text("hi")
    (tmp_path / "logo.svg").write_text("<svg/>")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result, _ = scan(tmp_path)
    found = reasons(result)
    assert [item.id for item in result.items] == ["good.png"]
    assert list(found) == sorted(found)
    words = {"cut.png": "truncated", "Thumbs.db": "system", ".DS_Store": "system",
             "._good.png": "hidden", "empty.jpg": "empty", "shot.nef": "raw", "notes.md": "not an",
             "logo.svg": "vector", "gone.png": "link"}  # fmt: skip
    assert found.keys() == words.keys()
    for name, word in words.items():
        assert word in found[name], name


def test_a_file_that_may_not_be_read_is_listed(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "locked.png", 1)
    real = os.open

    def guarded(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", guarded)
    assert "Permission denied" in reasons(scan(tmp_path)[0])["locked.png"]


def test_refuse_stops_at_damage_but_not_at_clutter(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "readme.md").write_text("x")
    assert len(scan(tmp_path, broken="refuse")[0].items) == 1
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    with pytest.raises(JobError, match=r"1 unusable pictures(.|\n)*cut.png: truncated"):
        scan(tmp_path, broken="refuse")
    assert (tmp_path / "cut.png").exists()


def test_folders_inside_count_only_if_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "more" / "b.png", 1)
    save(tmp_path / ".ipynb_checkpoints" / "c.png", 2)
    result, ctx = scan(tmp_path)
    assert [item.id for item in result.items] == ["a.png"]
    assert "1 pictures in folders" in ctx.warnings[0]
    result, ctx = scan(tmp_path, recursive=True)
    assert [item.id for item in result.items] == ["a.png", "more/b.png"]
    assert ctx.warnings == []


def test_duplicates_and_small_pictures_are_told(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    _, ctx = scan(tmp_path, resolution=[24, 64])
    assert any("a.png, b.png" in w and "same picture 2 times" in w for w in ctx.warnings)
    assert any("2 of 2 pictures are smaller than 64 x 24" in w for w in ctx.warnings)


def test_many_pictures_show_progress(tmp_path: Path) -> None:
    for k in range(scanning.MANY):
        save(tmp_path / f"{k:02}.png", k, 8, 8)
    _, ctx = scan(tmp_path, resolution=8)
    assert ctx.bars == [["checking pictures", scanning.MANY, scanning.MANY]]


# --- links, other trainers' folders, formats that are not read


def test_a_linked_folder_is_entered_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "pics", tmp_path / "elsewhere"
    for seed, name in enumerate(("0.png", "deep/1.png")):
        save(elsewhere / name, seed)
    save(root / "own" / "2.png", 2)
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (root / "all").symlink_to(root / "own")  # by its own name, not the link's
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    result, ctx = scan(root, recursive=True)
    assert [item.id for item in result.items] == ["again/0.png", "again/deep/1.png", "own/2.png"]
    assert problems(root, recursive=True) == []
    assert ctx.warnings == []
    with pytest.raises(JobError, match="lie in its folder") as caught:
        scan(root)
    assert "data.recursive to true" in caught.value.hint


def test_a_link_to_a_large_tree_is_looked_through_for_a_while_only(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(scanning, "GLANCE", 20)
    for k in range(60):
        (tmp_path / "tree" / f"{k:02}").mkdir(parents=True)
    save(tmp_path / "tree" / "59" / "a.png")
    save(tmp_path / "pics" / "b.png")
    (tmp_path / "pics" / "linked").symlink_to(tmp_path / "tree")
    assert scan(tmp_path / "pics")[1].warnings == []


@pytest.mark.parametrize("below", ["", "set/"])
def test_numbers_of_kohyas_folders_are_told_to_mean_nothing(tmp_path: Path, below: str) -> None:
    for seed, name in enumerate(("10_ohwx dog/0.png", "1_ohwx dog side/1.png", "x/2.png")):
        save(tmp_path / below / name, seed)
    _, ctx = scan(tmp_path, recursive=True)
    [warning] = ctx.warnings
    assert "10_ohwx dog, 1_ohwx dog side mean nothing here" in warning
    for plain in ("10", "dog_10", "_10"):
        save(tmp_path / "plain" / plain / "0.png", 3)
    assert scan(tmp_path / "plain", recursive=True)[1].warnings == [
        "the same picture 3 times counts 3-fold: 10/0.png, _10/0.png, dog_10/0.png"
    ]


PICTURES_NOT_READ = {
    "photo.jxl": (b"\xff\x0a" + bytes(40), "JPEG XL", "pillow-jxl-plugin"),
    "boxed.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL", "save it as PNG"),
    "named.jpg": (b"\xff\x0a" + bytes(40), "JPEG XL", "save it as PNG"),
    "layers.psd": (b"8BPS\0\1" + bytes(40), "Photoshop", "layers merged"),
    "wrong.png": (b"8BPS\0\1" + bytes(40), "Photoshop", "layers merged"),
    "render.tga": (bytes(44), "Targa", "save it as PNG"),
    "light.exr": (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR", "save it as PNG"),
    "work.xcf": (b"gimp xcf v011\0" + bytes(40), "GIMP", "export it"),
    "small.qoi": (b"qoif" + bytes(40), "QOI", "save it as PNG"),
    "print.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "vector drawing", "export it as PNG"),
}


@pytest.mark.parametrize("name", PICTURES_NOT_READ)
def test_a_picture_that_is_not_read_counts_as_one(
    tmp_path: Path, monkeypatch: Any, name: str
) -> None:
    monkeypatch.setattr(images, "_opener", lambda kind: False)
    data, kind, advice = PICTURES_NOT_READ[name]
    save(tmp_path / "a.jpg")
    (tmp_path / name).write_bytes(data)
    reason = reasons(scan(tmp_path)[0])[name]
    assert f"a picture that is not read ({kind}): " in reason
    assert advice in reason
    with pytest.raises(JobError, match=rf"1 unusable pictures(.|\n)*{re.escape(name)}: a picture"):
        scan(tmp_path, broken="refuse")
    (tmp_path / "a.jpg").unlink()
    monkeypatch.setattr(file_types, "find_spec", lambda module: None)
    [problem] = problems(tmp_path)
    assert f"{name}: a picture that is not read ({kind})" in problem.message


# --- nothing to train on: the scan and the check say the same


def both(path: Path) -> tuple[str, str]:
    with pytest.raises(JobError) as caught:
        scan(path)
    (problem,) = problems(path)
    assert problem.at == ("data", "path")
    assert caught.value.message == f"data.path: {problem.message}"
    assert caught.value.hint == problem.hint
    return problem.message, problem.hint


def test_missing_folder_names_its_likely_sibling(tmp_path: Path) -> None:
    (tmp_path / "my-dog").mkdir()
    assert both(tmp_path / "my_dog") == (
        f"{tmp_path / 'my_dog'} does not exist", f"Did you mean {tmp_path / 'my-dog'}?",
    )  # fmt: skip
    assert "nor can" in both(tmp_path / "x" / "y")[0]


def test_a_file_for_a_folder(tmp_path: Path) -> None:
    message, hint = both(save(tmp_path / "a.png"))
    assert "is a file" in message
    assert str(tmp_path) in hint


def test_empty_folder(tmp_path: Path) -> None:
    assert "is empty" in both(tmp_path)[0]


def test_pictures_one_folder_too_deep(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "a.png")
    message, hint = both(tmp_path)
    assert "1 lie in its folder 'dog'" in message
    assert str(tmp_path / "dog") in hint


def test_nothing_but_clutter(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    message, _ = both(tmp_path)
    assert "among the 2 files" in message
    assert "page.jpg: not an image, although it is named .jpg" in message


def test_all_pictures_damaged(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(JobError, match=r"a\.png: truncated"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "has_rows", "said"),
    [
        ("a photo of {identifier} {class_noun}", True, []),
        ("a photo of ohwx Dogs", True, []),
        ("a photo of {class_noun}", True, ["does not name the subject ('ohwx')"]),
        ("a photo of ohwxs dog", True, ["does not name the subject"]),
        ("a photo of xohwx dog", True, ["does not name the subject"]),
        ("a photo of {identifier}", True, ["does not name the class ('dog')"]),
        ("a photo of {identifier}", False, []),
        ("{identifier} dog in {style}", True, ["nothing fills in {style}"]),
        ("{ identifier } ohwx dog", True, ["nothing fills in { identifier }"]),
    ],
)
def test_prompt_must_name_the_subject(
    tmp_path: Path, prompt: str, has_rows: bool, said: list[str]
) -> None:
    save(tmp_path / "a.png")
    found = problems(tmp_path, has_rows, prompt=prompt)
    assert len(found) == len(said)
    for problem, words in zip(found, said, strict=True):
        assert problem.at == ("data", "prompt")
        assert words in problem.message
        assert problem.hint


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1), value=st.integers(0, 255), keep=st.floats(0.2, 1.4))
def test_a_mutated_file_is_usable_or_listed(
    tmp_path: Path, where: float, value: int, keep: float
) -> None:
    out = io.BytesIO()
    Image.fromarray(picture(3)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    data[int(where * (len(data) - 1))] = value
    (tmp_path / "bad.jpg").write_bytes(data[: int(len(data) * keep)])
    save(tmp_path / "good.png")
    result, _ = scan(tmp_path)
    names = [item.id for item in result.items]
    assert sorted([*names, *reasons(result)]) == ["bad.jpg", "good.png"]
    if "bad.jpg" in names:
        source = Folder(path=tmp_path, resolution=16)
        assert source.load(result.items[0], 0, RNG(0)).pixels.shape == (16, 16, 3)
