"""`dbt init`: what it writes, what it refuses, what it says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dreambooth.cli import starter
from dreambooth.cli.init import init
from dreambooth.errors import JobError
from dreambooth.interfaces import Subject, Usual
from dreambooth.jobs.loading import check_job, load_job
from dreambooth.jobs.schema import job_schema

app = typer.Typer()
app.command()(init)


def run(*args: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*args: object) -> JobError:
    with pytest.raises(JobError) as caught:
        run(*args)
    assert caught.value.hint
    return caught.value


def photos(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    for k, size in enumerate(sizes):
        Image.new("RGB", size, (k, 50, 50)).save(folder / f"{k}.jpg")
    (folder / "notes.md").write_text("no picture")
    return folder


@pytest.fixture
def sd15(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A single file that says it is Stable Diffusion 1.5."""
    file = tmp_path / "models" / "sd15.safetensors"
    file.parent.mkdir()
    file.touch()
    info = SimpleNamespace(
        resolution=512,
        latent=SimpleNamespace(multiple=64),
        guidance_default=7.5,
        usual=Usual(lora_parts=("unet",)),
    )
    module = sys.modules["dreambooth.cli.init"]  # the package names the command so
    monkeypatch.setattr(module, "_describe", lambda model, config=None: info)
    return file


@pytest.mark.parametrize("example", ["fox", "octopus"])
def test_an_example_is_a_whole_job_with_pictures_and_captions(tmp_path: Path, example: str) -> None:
    text = run(tmp_path / "demo", "--example", example)
    folder = tmp_path / "demo"
    assert f"next     dbt run {folder / 'job.yaml'}" in text
    job = load_job(folder / "job.yaml")
    assert job.name == "demo"
    assert job.subject == Subject(identifier="auto", class_noun=example)
    assert job.output == folder / "runs"
    assert job.model.key()["source"] in ("builtin:emoji-64", "builtin:tiny")
    data = job.data.key()
    assert data["path"] == str(folder / "pictures")
    assert data["resolution"] == job.model.describe().resolution
    assert job.optimizer.key()["lr"] == 3e-4
    assert (job.train.steps, job.train.batch_size) == (400, 2)
    assert {k: job.prior.key()[k] for k in ("kind", "count", "batch_size")} == {
        "kind": "generated", "count": 40, "batch_size": 20,
    }  # fmt: skip
    assert (job.sampler.key()["guidance_scale"], job.sampler.key()["steps"]) == (4.0, 25)
    assert job.samples.every == 100
    assert "a photo of a {identifier} {class_noun} on a teal background" in job.samples.prompts
    pictures = sorted((folder / "pictures").glob("*.png"))
    assert len(pictures) == starter.EXAMPLE_COUNT
    backgrounds = set()
    for path in pictures:
        with Image.open(path) as image:
            assert image.size == (128, 128)
        caption = path.with_suffix(".txt").read_text().strip()
        assert caption.startswith("a photo of a {identifier} {class_noun} on a ")
        backgrounds.add(caption.split()[-2])
    assert len(backgrounds) == 5
    assert not backgrounds & {"teal", "purple", "black", "white"}
    assert "MIT License" in (folder / "LICENSE-pictures.txt").read_text()


@pytest.mark.parametrize("model", [(), ("--model", "builtin:tiny")])
def test_the_written_job_passes_every_check_there_is(
    tmp_path: Path, model: tuple[str, ...]
) -> None:
    run(tmp_path, "--example", "fox", *model)
    assert check_job(tmp_path / "job.yaml").data.key()["path"] == str(tmp_path / "pictures")


def test_the_written_job_is_the_one_the_defaults_describe(tmp_path: Path) -> None:
    """The kinds a starter names are the defaults: nothing else is chosen behind one's back."""
    run(tmp_path, "--example", "fox")
    written = load_job(tmp_path / "job.yaml").resolved()
    for slot in ("scheduler", "loss", "freezing"):
        fields = type(load_job(tmp_path / "job.yaml")).model_fields
        assert written[slot]["kind"] == fields[slot].default


def test_the_schema_lies_beside_the_job(tmp_path: Path) -> None:
    run(tmp_path, "--example", "fox")
    first = (tmp_path / "job.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./job.schema.json"
    schema = json.loads((tmp_path / "job.schema.json").read_text())
    assert schema == json.loads(json.dumps(job_schema()))


@pytest.mark.parametrize("lora", [(), ("--lora",)])
def test_comments_stand_in_a_column_and_lines_fit(tmp_path: Path, lora: tuple[str, ...]) -> None:
    run(tmp_path, "--example", "fox", *lora)
    lines = (tmp_path / "job.yaml").read_text().splitlines()
    assert sum(" # " in line for line in lines) > 25
    assert max(map(len, lines)) <= 100
    assert "¦" not in "".join(lines)


def test_own_pictures(tmp_path: Path, sd15: Path) -> None:
    folder = photos(tmp_path / "my dog", (900, 700), (640, 640), (800, 1200))
    text = run(tmp_path / "job", "--pictures", folder, "--class-noun", "dog",
               "--identifier", "zwx", "--name", "rex", "--model", sd15)  # fmt: skip
    assert "pictures 3 in" in text
    job = load_job(tmp_path / "job" / "job.yaml")
    assert (job.name, job.subject.identifier, job.subject.class_noun) == ("rex", "zwx", "dog")
    assert '"../my dog"' in (tmp_path / "job" / "job.yaml").read_text()
    assert Path(job.data.key()["path"]).resolve() == folder
    assert job.data.key()["resolution"] == 512
    assert job.optimizer.key()["lr"] == 5e-6
    assert not (tmp_path / "job" / "pictures").exists()
    assert Path(job.model.key()["source"]).resolve() == sd15


def test_small_pictures_lower_the_resolution_and_say_so(tmp_path: Path, sd15: Path) -> None:
    folder = photos(tmp_path / "p", (400, 400), (410, 500), (390, 390))
    text = run(tmp_path, "--pictures", folder, "--class-noun", "dog", "--model", sd15)
    assert load_job(tmp_path / "job.yaml").data.key()["resolution"] == 384
    assert "resolution 384, not the model's own 512" in text


def test_without_pictures_a_place_for_them_is_made(tmp_path: Path) -> None:
    text = run(tmp_path / "new", "--class-noun", "cat")
    assert (tmp_path / "new" / "pictures").is_dir()
    assert "put 3-5 pictures of your cat into" in text
    assert load_job(tmp_path / "new" / "job.yaml").subject.class_noun == "cat"


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    run(tmp_path, "--example", "fox")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    run(tmp_path, "--example", "fox")  # the same again changes nothing
    assert {p: p.read_bytes() for p in before} == before
    error = refused(tmp_path, "--example", "octopus")
    assert "exists already" in error.message
    assert "--force" in error.hint
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    run(tmp_path, "--example", "octopus", "--force")
    assert load_job(tmp_path / "job.yaml").subject.class_noun == "octopus"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "what is the subject?"),
        (["--example", "fox", "--pictures", "."], "brings its own pictures"),
        (["--class-noun", "dog", "--pictures", "nowhere"], "is no folder"),
        (["--class-noun", "dog", "--name", "a/b"], "--name:"),
        (["--class-noun", "dog", "--identifier", ""], "--identifier:"),
        (["--class-noun", "dog", "--identifier", "my dog"], "is more than one word"),
        (["--class-noun", "dog", "--model", "nowhere.safetensors"], "there is no model file"),
        (["--class-noun", "dog", "--model", "./nowhere"], "there is no model at"),
    ],
)
def test_what_makes_no_job_is_refused_and_nothing_written(
    tmp_path: Path, args: list[str], said: str
) -> None:
    assert said in refused(tmp_path / "x", *args).message
    assert not (tmp_path / "x").exists()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    assert "no picture" in refused(
        tmp_path / "x", "--class-noun", "dog", "--pictures", photos(tmp_path / "p")
    ).message  # fmt: skip


def test_pictures_in_a_folder_below_are_named(tmp_path: Path) -> None:
    photos(tmp_path / "p" / "rex", (8, 8), (8, 8))
    error = refused(tmp_path / "x", "--class-noun", "dog", "--pictures", tmp_path / "p")
    assert error.hint == f"{tmp_path / 'p' / 'rex'} holds 2: name that folder."


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "flux").mkdir()
    index = {"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(index))
    error = refused(tmp_path / "x", "--class-noun", "dog", "--model", tmp_path / "flux")
    assert "holds a FluxPipeline" in error.message
    assert "Stable Diffusion 1.x" in error.hint
    assert not (tmp_path / "x").exists()


def test_a_file_that_does_not_tell_what_it_is_needs_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreambooth_plugins.common.headers import Header
    from dreambooth_plugins.formats.original import families

    header = Header({f"{families.UNET}a.attn2.to_k.weight": (320, 1024)}, {})
    monkeypatch.setattr("dreambooth_plugins.common.headers.read_header", lambda _: header)
    monkeypatch.setattr(families, "check_layout", lambda *_, **__: None)
    monkeypatch.setattr("dreambooth_plugins.model.folder_model.check_file", lambda *_: None)
    (tmp_path / "sd2.safetensors").touch()
    asked = (tmp_path / "x", "--class-noun", "dog", "--model", tmp_path / "sd2.safetensors")
    error = refused(*asked)
    assert "does not say what it predicts" in error.message
    assert error.hint.startswith("add --config builtin:sd20-base (512 px")
    run(*asked, "--config", "builtin:sd21")
    job = load_job(tmp_path / "x" / "job.yaml")
    assert job.model.key()["config"] == "builtin:sd21"
    assert job.data.key()["resolution"] == 768


@pytest.mark.parametrize("model", [(), ("--model", "builtin:tiny")])
def test_a_lora_is_a_job_that_passes_every_check(tmp_path: Path, model: tuple[str, ...]) -> None:
    run(tmp_path / "demo", "--example", "fox", "--lora", *model)
    job = check_job(tmp_path / "demo" / "job.yaml")
    assert job.freezing.kind == "adapter"
    assert job.optimizer.key()["lr"] == 2e-3


def test_a_lora_of_a_large_model_takes_the_usual_rate(tmp_path: Path, sd15: Path) -> None:
    run(tmp_path / "rex", "--class-noun", "dog", "--lora", "--model", sd15)
    job = load_job(tmp_path / "rex" / "job.yaml")
    assert (job.name, job.optimizer.key()["lr"]) == ("rex", 1e-4)
    assert job.freezing.key()["train"] == ["unet"]


@pytest.mark.parametrize(
    ("name", "kind", "guidance", "options", "expected"),
    [
        ("tiny", "stable_diffusion", 7.5, (), ("components", 5e-6, 600, 1, 200)),
        ("tiny", "stable_diffusion", 7.5, ("--lora",), ("adapter", 1e-4, 600, 1, 200)),
        ("tiny-sd2", "stable_diffusion", 7.5, (), ("components", 5e-6, 600, 1, 200)),
        ("tiny-sdxl", "sdxl", 5.0, (), ("adapter", 1e-4, 500, 4, 200)),
        ("tiny-sdxl", "sdxl", 5.0, ("--no-lora",), ("components", 5e-6, 500, 4, 200)),
    ],
)
def test_a_familys_own_numbers_are_written_and_their_source_named(
    tmp_path: Path,
    name: str,
    kind: str,
    guidance: float,
    options: tuple[str, ...],
    expected: tuple[object, ...],
) -> None:
    from dreambooth_plugins.model.tiny import tiny_folder

    folder = shutil.copytree(tiny_folder(name, build=True), tmp_path / "model")
    pictures = photos(tmp_path / "photos", (64, 64), (64, 64), (64, 64))
    run(tmp_path / "j", "--pictures", pictures, "--class-noun", "dog", "--model", folder, *options)
    text = (tmp_path / "j" / "job.yaml").read_text()
    source = "README_sdxl.md" if kind == "sdxl" else "arXiv:2208.12242"
    assert f"{source}" in next(line for line in text.splitlines() if "Numbers are those" in line)
    job = check_job(tmp_path / "j" / "job.yaml")
    assert (job.model.kind, job.scheduler.kind, job.sampler.kind) == (kind, "ddpm", "cfg")
    assert job.sampler.key()["guidance_scale"] == guidance
    lr, count = job.optimizer.key()["lr"], job.prior.key()["count"]
    found = (job.freezing.kind, lr, job.train.steps, job.train.accumulation, count)
    assert found == expected
    if kind == "sdxl" and job.freezing.kind == "adapter":
        assert job.freezing.key()["method"]["rank"] == 4


def test_the_default_identifier_is_one_that_suits_the_model(tmp_path: Path) -> None:
    from dreambooth.jobs import identifiers

    run(tmp_path, "--example", "fox")
    job = check_job(tmp_path / "job.yaml")
    assert job.subject.identifier != "auto"
    assert not identifiers.warnings(job)


def test_odd_words_survive_yaml(tmp_path: Path) -> None:
    folder = photos(tmp_path / 'a "b" # c: ü $HOME', (600, 600))
    run(tmp_path / "j", "--pictures", folder, "--class-noun", "coffee # mug: \\ 'x'",
        "--identifier", "<dog>")  # fmt: skip
    job = load_job(tmp_path / "j" / "job.yaml")
    assert job.subject == Subject(identifier="<dog>", class_noun="coffee # mug: \\ 'x'")
    assert job.data.path.resolve() == folder


@pytest.mark.parametrize(
    ("sides", "native", "multiple", "expected"),
    [
        ([], 512, 64, 512),
        ([700, 512, 513], 512, 64, 512),
        ([511, 500, 490], 512, 64, 448),
        ([2000, 400, 400], 512, 64, 384),
        ([100, 120], 512, 64, 256),
        ([50], 64, 16, 48),
        ([10], 64, 16, 32),
        ([600, 800], 1000, 64, 640),
    ],
)
def test_resolution_suits_model_and_pictures(
    sides: list[int], native: int, multiple: int, expected: int
) -> None:
    assert starter.pick_resolution(sides, native, multiple) == expected
