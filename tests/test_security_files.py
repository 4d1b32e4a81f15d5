"""Files of strangers: no pickle is read unasked, and no path in a file leads out of its folder."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth import UserError
from dreambooth.engine.checkpoints import files
from dreambooth.engine.checkpoints.files import CHECKSUMS, Damaged, file_hash
from dreambooth.engine.checkpoints.resuming import go_back
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError, RunError
from dreambooth.interfaces import Subject
from dreambooth.runs.checkpoints import copy
from dreambooth.runs.folder import RunFolder
from dreambooth.runs.outlook import Outlook
from dreambooth_plugins.data import Folder
from dreambooth_plugins.model.folder.loading import load_part
from dreambooth_plugins.model.stable_diffusion import StableDiffusion
from sd_folder import PARTS, STEMS, Source

if TYPE_CHECKING:
    from collections.abc import Iterator


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """Where a trap would leave its mark; it must not be there in the end."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()


def pickled(part: str) -> str:
    return "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"


def refused(job_model: StableDiffusion, ctx: Any) -> JobError:
    """Check that a model is refused, by `validate` and by a run, and return what is said."""
    with pytest.raises(JobError) as caught:
        job_model.describe()
    with pytest.raises(JobError):
        job_model.open(ctx)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("part", PARTS)
def test_pickled_weights_of_a_folder_are_refused(
    model: Path, part: str, sprung: Path, ctx: Any
) -> None:
    (model / part / f"{STEMS[part]}.safetensors").unlink()
    torch.save({"w": Trap(sprung)}, model / part / pickled(part))
    error = refused(StableDiffusion(source=str(model)), ctx)
    assert "is a pickle" in error.message
    assert "model.allow_pickle" in error.hint
    # Allowed, it is still read as weights only: nothing of it runs.
    StableDiffusion(source=str(model), allow_pickle=True).describe()
    with pytest.raises(RunError, match=f"cannot be read as {part}"):
        load_part(Source(model, allow_pickle=True), part, torch.float32)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth"])
@pytest.mark.parametrize("option", ["source", "vae"])
def test_a_pickled_single_file_is_refused(
    model: Path, tmp_path: Path, suffix: str, option: str, sprung: Path, ctx: Any
) -> None:
    file = tmp_path / f"model{suffix}"
    torch.save({"state_dict": Trap(sprung)}, file)
    options = {"source": str(model), option: str(file)}
    error = refused(StableDiffusion(**options), ctx)
    assert "is a pickle" in error.message
    assert "model.allow_pickle" in error.hint
    allowed = StableDiffusion(**options, allow_pickle=True)
    with pytest.raises(UserError):  # at the latest when the part is read
        allowed.open(ctx).parts["vae"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("named", ["evil.bin", "../evil.bin", "../evil.safetensors", "{}/evil.bin"])
def test_an_index_brings_in_no_pickle_and_no_other_folder(
    model: Path, tmp_path: Path, part: str, named: str, sprung: Path, ctx: Any
) -> None:
    whole = model / part / f"{STEMS[part]}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    for folder in (model, model / part, tmp_path):
        torch.save(tensors, folder / "evil.bin")
        save_file(tensors, folder / "evil.safetensors")
    weights = dict.fromkeys(tensors, named.format(tmp_path))
    (model / part / f"{whole.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weights})
    )
    error = refused(StableDiffusion(source=str(model)), ctx)
    assert "index.json names" in error.message


def test_a_configuration_brings_in_no_other_weights(model: Path, sprung: Path, ctx: Any) -> None:
    inside = model / "text_encoder"
    good = load_file(inside / "model.safetensors")
    config = json.loads((inside / "config.json").read_text())
    for other in ("adapter_model.bin", "other.safetensors"):
        torch.save({name: t * 0 for name, t in good.items()}, inside / "adapter_model.bin")
        save_file({name: t * 0 for name, t in good.items()}, inside / "other.safetensors")
        (inside / "config.json").write_text(json.dumps({**config, "transformers_weights": other}))
        loaded = load_part(Source(model), "text_encoder", torch.float32)
        assert all(p.abs().sum() > 0 for n, p in loaded.named_parameters() if "embedding" in n)
    (inside / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    assert "adapter" in refused(StableDiffusion(source=str(model)), ctx).message


def test_a_checkpoint_archive_unpacks_nowhere_and_not_without_limit(
    tmp_path: Path, sprung: Path, ctx: Any
) -> None:
    file = tmp_path / "model.ckpt"
    for name in ("../evil/data.pkl", "/evil/data.pkl", "evil/data.pkl"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(name, bytes(101_000_000))  # half a MB on disk
        began = time.monotonic()
        error = refused(StableDiffusion(source=str(file), allow_pickle=True), ctx)
        assert "unpacks to more than" in error.message
        assert time.monotonic() - began < 5
        assert [path.name for path in tmp_path.rglob("*")] == ["model.ckpt"]


def saved(folder: Path) -> Path:
    tensors = {"trainable": {"w": torch.ones(3)}}
    return files.save(folder, 1, tensors, {"step": 1}, lambda steps: [])


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "a/../../outside.safetensors", "{}/outside.safetensors",
             "..", ".", "", "./state.json", "..\\outside.safetensors", "x\0.json"],
)  # fmt: skip
def test_a_checkpoint_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    """Even one with the right checksum."""
    folder = saved(tmp_path / "checkpoints")
    outside = tmp_path / "checkpoints/outside.safetensors"
    save_file({"w": torch.zeros(3)}, outside)
    sums = json.loads((folder / CHECKSUMS).read_text())
    sums[name.format(tmp_path / "checkpoints")] = file_hash(outside)
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(Damaged, match="is no file of a checkpoint"):
        files.load(folder)


@pytest.mark.parametrize("what", ["state.json", "trainable.safetensors", "the folder"])
def test_a_checkpoint_that_is_a_link_is_not_followed(tmp_path: Path, what: str) -> None:
    folder = saved(tmp_path / "checkpoints")
    place = folder if what == "the folder" else folder / what
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match="is a link"):
        files.load(folder)


@pytest.mark.parametrize("what", ["checksums.json", "state.json", "trainable.safetensors"])
def test_a_strangers_checkpoint_is_copied_without_links(tmp_path: Path, what: str) -> None:
    folder = saved(tmp_path / "checkpoints")
    (folder / "secret.txt").symlink_to("/etc/passwd")
    (folder / "more").mkdir()
    (folder / "more/x.json").write_text("{}")
    (folder / "waits").symlink_to("/dev/zero")
    (tmp_path / "copy").mkdir()
    copy(folder, tmp_path / "copy")
    names = ["checksums.json", "state.json", "trainable.safetensors"]
    assert sorted(f.name for f in (tmp_path / "copy").iterdir()) == names
    assert torch.equal(files.load(folder).tensors["trainable"]["w"], torch.ones(3))
    (folder / what).rename(tmp_path / what)
    (folder / what).symlink_to(tmp_path / what)
    (tmp_path / "again").mkdir()
    with pytest.raises(Damaged, match=r"cannot be copied|is a link"):
        copy(folder, tmp_path / "again")
    assert not (tmp_path / "again" / what).exists()


def begun_at(folder: Path) -> Outlook:
    return Outlook({}, start=folder, foreign=True)


def test_going_back_to_a_strangers_checkpoint_takes_what_is_named_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path / "theirs")
    (folder / "link").symlink_to(tmp_path)
    run = RunFolder(tmp_path / "run")
    go_back(run, begun_at(folder), Quiet())
    copied = run.checkpoints / folder.name
    assert sorted(f.name for f in copied.iterdir()) == sorted(
        f.name for f in folder.iterdir() if not f.is_symlink()
    )
    (folder / "state.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        go_back(RunFolder(tmp_path / "other"), begun_at(folder), Quiet())


@pytest.mark.parametrize("name", ["../outside.txt", "final/../../outside.txt", "{}/outside.txt"])
def test_a_manifest_names_no_file_outside_its_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.txt").write_text("x")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    result = {"steps": 1, "checks": [], "scalars": {}, "files": {name.format(tmp_path): 1}}
    folder.manifest.write_text(json.dumps({"result": result}))
    with pytest.raises(RunError, match="leads out of the run's folder") as caught:
        folder.result_is_whole()
    assert caught.value.hint


@pytest.mark.parametrize("linked", ["final/x.txt", "final"])
def test_a_result_that_links_lead_out_to_is_not_the_runs(tmp_path: Path, linked: str) -> None:
    folder = RunFolder(tmp_path / "run")
    (folder.path / "final").mkdir(parents=True)
    (folder.path / "final/x.txt").write_text("x")
    result = {"steps": 1, "checks": [], "scalars": {}, "files": {"final/x.txt": 1}}
    folder.update_manifest(result=result)
    assert folder.result_is_whole()
    (folder.path / linked).rename(tmp_path / "elsewhere")
    (folder.path / linked).symlink_to(tmp_path / "elsewhere")
    assert not folder.result_is_whole()


def test_metadata_names_no_picture_outside_its_folder(tmp_path: Path, pictures: Path) -> None:
    shutil.copy(pictures / "1.png", tmp_path / "outside.png")
    lines = [{"file_name": name, "text": "stolen"} for name in
             ("../outside.png", str(tmp_path / "outside.png"), "x/../../outside.png")]  # fmt: skip
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    context = SimpleNamespace(
        warn=lambda message: None,
        job=SimpleNamespace(subject=Subject(identifier="ohwx", class_noun="dog")),
    )
    scan = Folder(path=pictures).scan(context)
    assert [item.id for item in scan.items] == ["0.png", "1.png", "2.png"]
    assert "stolen" not in {item.caption for item in scan.items}
    assert len([row for row in scan.rejected if "without a usable image" in row.reason]) == 3
