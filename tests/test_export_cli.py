"""`dbt export`: another format of a run, without training."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth import hookimpl
from dreambooth.cli import _main
from dreambooth.engine.loop import run
from dreambooth.interfaces import Check
from dreambooth.jobs.loading import dump_job
from dreambooth.plugins import registry_with
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.exporter import Kohya, Lora
from test_run import cut

ADAPTER = {"kind": "adapter", "train": ["unet", "text_encoder"]}


@pytest.fixture
def dbt(monkeypatch, capsys):
    """Run the command line in this process: `dbt("export", ...)` -> exit code, stdout, stderr."""
    for name, value in {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["dbt", *map(str, args)])
        capsys.readouterr()
        code = _main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def trained(small_job):
    """Train a small job: `trained(freezing=...)` returns its folder."""

    def make(**sections):
        given = {"freezing": ADAPTER, "optimizer": {"lr": 1e-2}, **sections}
        return run(small_job(**given)).folder

    return make


def test_another_format_is_the_one_the_run_would_have_written(trained, dbt, tmp_path):
    folder = trained(exports=["lora", "kohya"])
    code, out, err = dbt("export", folder, "--format", "kohya", "--dest", tmp_path / "out")
    assert code == 0, err
    one, two = (p / "small.safetensors" for p in (folder / "exports/kohya", tmp_path / "out"))
    assert one.read_bytes() == two.read_bytes()
    for text in (
        "from step-000004",
        "checked  opened with diffusers: 40 adapters equal",
        "prediction at three timesteps: ",
        "drawn latents: ",
        "card     ",
    ):
        assert text in out
    assert (tmp_path / "out/README.md").is_file()


@pytest.mark.parametrize("format_", ["lora", "kohya", "peft", "merged", "single_file"])
def test_every_format_of_an_adapter_is_within_its_tolerance(trained, dbt, format_):
    folder = trained()
    code, out, err = dbt("export", folder, "-f", format_, "--check", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["format"], said["weights"], said["checked"]) == (format_, "step-000004", True)
    assert said["figures"]["denoiser"] <= 1e-5
    assert said["figures"]["latents"] <= (1e-3 if format_ in ("merged", "single_file") else 1e-4)
    there = {
        p.relative_to(folder / "exports" / format_).as_posix(): p.stat().st_size
        for p in (folder / "exports" / format_).rglob("*")
        if p.is_file()
    }
    assert said["files"] == there


@pytest.mark.parametrize("format_", ["diffusers", "single_file"])
@pytest.mark.parametrize("checkpoints", [True, False], ids=["checkpoint", "final alone"])
def test_whole_weights(trained, dbt, format_, checkpoints):
    folder = trained(freezing="components", optimizer={"lr": 1e-3})
    if not checkpoints:
        shutil.rmtree(folder / "checkpoints")
    code, out, err = dbt("export", folder, "--format", format_)
    assert code == 0, err
    assert ("from step-000004" if checkpoints else "from final") in out
    if format_ == "diffusers":
        one, two = (
            load_file(folder / at / "unet/diffusion_pytorch_model.safetensors")
            for at in ("final", "exports/diffusers")
        )
        assert all((one[name] == two[name]).all() for name in one)


def test_a_word(trained, dbt):
    folder = trained(freezing="token", subject={"identifier": "<x>", "class_noun": "dog"})
    shutil.rmtree(folder / "checkpoints")
    code, out, err = dbt("export", folder, "--format", "embedding", "-o", "dtype=bf16")
    assert code == 0, err
    assert "load_textual_inversion" in out
    assert (folder / "exports/embedding/learned_embeds.safetensors").is_file()


def test_a_job_file_names_its_run_and_an_interrupted_one_is_enough(
    small_job, dbt, tmp_path, monkeypatch
):
    job = small_job(freezing=ADAPTER, checkpoints={"every": 2}, exports=["lora"])
    file = tmp_path / "job.yaml"
    file.write_text(dump_job(job))
    code, _, err = dbt("export", file, "--format", "kohya")
    assert code == 2
    assert "has not begun" in err
    assert f"dbt run {file}" in err
    cut(job, 3, monkeypatch)
    assert not (job.folder / "final").exists()
    code, out, err = dbt("export", file, "--format", "kohya")
    assert code == 0, err
    assert "from step-000002" in out
    with safe_open(job.folder / "exports/kohya/small.safetensors", "pt") as opened:
        assert opened.metadata()["ss_steps"] == "2"


def test_half_precision_is_reported(trained, dbt):
    folder = trained(exports=["lora", "kohya"])
    before = (folder / "exports/kohya/small.safetensors").stat().st_size
    code, out, err = dbt("export", folder, "--format", "kohya", "-o", "dtype=fp16", "--json")
    assert code == 0, err
    assert 1e-6 < json.loads(out)["figures"]["denoiser"] < 0.05
    assert (folder / "exports/kohya/small.safetensors").stat().st_size < 0.7 * before
    # It took the place of one of the run's own exports: the run is still whole.
    assert RunFolder(folder).result_is_whole()
    (folder / "exports/kohya/README.md").write_text("my own words")
    (folder / "final/README.md").unlink()
    assert RunFolder(folder).result_is_whole()
    (folder / "exports/kohya/small.safetensors").write_bytes(b"")
    assert not RunFolder(folder).result_is_whole()


def test_unchecked_says_so(trained, dbt):
    code, out, _ = dbt("export", trained(), "--format", "kohya", "--no-check")
    assert code == 0
    assert "checked  no" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--format", "kohia"], ['no format "kohia"', 'did you mean "kohya"?', "single_file"]),
        (["--format", "zip"], ['no format "zip"', "diffusers, embedding, kohya, lora, merged"]),
        (["--format", "kohya", "-o", "dtpye=fp16"], ["-o dtpye=fp16", 'did you mean "dtype"?']),
        (["--format", "kohya", "-o", "dtype=fp8"], ["-o dtype=fp8", "fp16"]),
        (["--format", "kohya", "-o", "dtype"], ["-o dtype", 'has no "="', "write it as key=value"]),
        (["--format", "diffusers"], ["diffusers cannot hold", "adapter", "kohya, lora, merged"]),
        (["--format", "embedding"], ["embedding cannot hold", "formats that can: "]),
        ([], ["--format"]),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_opened(trained, dbt, monkeypatch, args, said):
    folder = trained()
    # Importing it fails.
    monkeypatch.setitem(sys.modules, "dreambooth.engine.results.exports", None)
    code, _, err = dbt("export", folder, *args)
    assert code == 2
    for text in said:
        assert text in err
    assert "exports.0" not in err
    assert not (folder / "exports").exists()


def test_a_refusal_gives_the_reason_and_what_would_do(trained, dbt):
    folder = trained(freezing={"kind": "adapter", "method": "dora"})
    code, _, err = dbt("export", folder, "--format", "kohya")
    assert code == 2
    assert "the axis of DoRA's magnitudes" in err
    assert "other formats: comfyui, lora, merged, peft, single_file" in err


def test_a_folder_with_something_in_it_is_left_alone(trained, dbt, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    folder = trained()
    code, _, err = dbt("export", folder, "-f", "kohya", "--dest", tmp_path / "mine")
    assert code == 2
    assert "holds something already" in err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_no_run_and_no_result(dbt, tmp_path, small_job):
    code, _, err = dbt("export", tmp_path, "--format", "kohya")
    assert code == 2
    assert "is not a run" in err
    job = small_job(freezing=ADAPTER)
    job.folder.mkdir(parents=True)
    (job.folder / "job.yaml").write_text(dump_job(job))
    code, _, err = dbt("export", job.folder, "--format", "kohya")
    assert code == 1
    assert "neither a result nor a checkpoint" in err
    assert not (job.folder / "exports").exists()


class Wrong(Kohya):
    """kohya's layout with a fault, as a test breaks it."""

    kind: Literal["wrong"] = "wrong"  # type: ignore[assignment]
    fault: str = "alpha"

    def write(self, artifact, model, dest, ctx, solver_config):
        super().write(artifact, model, dest, ctx, solver_config)
        [file] = dest.glob("*.safetensors")
        tensors = load_file(file)
        if self.fault == "alpha":
            tensors |= {n: t * 2 for n, t in tensors.items() if n.endswith("alpha")}
        else:
            q, k = (next(n for n in sorted(tensors) if f"to_{x}.lora_up" in n) for x in "qk")
            tensors[q], tensors[k] = tensors[k], tensors[q]
        save_file(tensors, file)


class Plugin:
    @hookimpl
    def register_exporters(self):
        return [Wrong]


@pytest.mark.parametrize("fault", ["alpha", "swapped"])
def test_a_file_that_draws_something_else_is_a_failure(trained, dbt, fault):
    folder = trained()
    with registry_with(Plugin()):
        code, _, err = dbt("export", folder, "--format", "wrong", "-o", f"fault={fault}")
    assert code == 1
    assert "differs from the trained model" in err
    assert "adapters differ in the file" in err
    assert not (folder / "exports/wrong").exists()


def test_a_failed_check_leaves_what_was_there(trained, dbt, monkeypatch):
    folder = trained()

    def files():
        return {path: path.read_bytes() for path in (folder / "exports").rglob("*.*")}

    def spoilt(exporter, artifact, model, dest, ctx, solver_config):
        (dest / "half.safetensors").write_text("")

    def failing():
        with monkeypatch.context() as patch:
            patch.setattr(Lora, "write", spoilt)
            patch.setattr(Lora, "verify", lambda *_: Check(False, "another picture"))
            code, _, err = dbt("export", folder, "--format", "lora")
        assert code == 1
        assert "another picture" in err

    failing()
    assert files() == {}
    assert dbt("export", folder, "--format", "lora")[0] == 0
    made = files()
    failing()
    assert files() == made


def test_help_names_the_formats_and_the_options(dbt):
    code, out, _ = dbt("export", "--help")
    assert code == 0
    for text in ("single_file", "--format", "--dest", "--no-check", "-o dtype=fp16", "RUN"):
        assert text in out


# --- of a step that was kept


@pytest.fixture
def kept(trained):
    """Train four steps and keep each."""
    return trained(checkpoints={"every": 1, "keep_last": 4}, prior="none")


TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def factor(file):
    return load_file(file)[
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    ]


def test_a_steps_adapter_is_what_its_checkpoint_holds(kept, dbt):
    for step in (2, 3):
        code, out, err = dbt("export", kept, "-f", "lora", "--step", step)
        assert code == 0, err
        assert f"from step-00000{step}" in out
    files = {s: kept / f"exports/lora-step-00000{s}/pytorch_lora_weights.safetensors"
             for s in (2, 3)}  # fmt: skip
    for step, file in files.items():
        weights = load_file(kept / f"checkpoints/step-00000{step}/trainable.safetensors")
        assert factor(file).equal(weights[f"unet.{TO_Q}.lora_B.default.weight"])
        assert f"| steps | {step} |" in (file.parent / "README.md").read_text()
    final = factor(kept / "final/pytorch_lora_weights.safetensors")
    assert not factor(files[2]).equal(factor(files[3]))
    assert not factor(files[3]).equal(final)
    assert dbt("export", kept, "-f", "lora", "--step", 4)[0] == 0
    last = kept / "exports/lora-step-000004/pytorch_lora_weights.safetensors"
    assert factor(last).equal(final)


@pytest.mark.parametrize("command", [("export", "-f", "lora"), ("sample", "a dog")])
def test_a_step_that_is_not_kept_is_told_with_those_that_are(kept, dbt, command):
    code, _, err = dbt(command[0], kept, *command[1:], "--step", 7)
    assert code == 2
    assert "keeps no checkpoint of step 7" in err
    assert "kept: 1, 2, 3, 4; checkpoints.keep_every" in err


@pytest.mark.parametrize("steps", ["", "0", "1,,2", "two", "-1", "1;2", "²"])
def test_steps_are_numbers_with_commas(kept, dbt, steps):
    code, _, err = dbt("sample", kept, "a dog", f"--step={steps}")
    assert code == 2
    assert "write 400, or 100,200,400" in err


def test_steps_are_rows_of_one_grid(kept, dbt, tmp_path):
    out = tmp_path / "out"
    code, said, err = dbt(
        "sample", kept, "a dog", "{identifier}", "-n", 2, "--step", "4,1,2", "--out", out,
        "--steps", 2,
    )  # fmt: skip
    assert code == 0, err
    assert "12 pictures from steps 1, 2, 4" in said
    with Image.open(out / "grid.png") as sheet:
        side = sheet.width // 4
        assert (sheet.width, sheet.height) == (4 * side, 3 * side)
        rows = [
            np.asarray(sheet.crop((0, k * side, sheet.width, (k + 1) * side))) for k in range(3)
        ]
    for row, step in zip(rows, (1, 2, 4), strict=True):
        record = json.loads((out / f"step-00000{step}/prompts.json").read_text())
        assert [r["step"] for r in record] == [step] * 4
        singles = [np.asarray(Image.open(out / f"step-00000{step}" / r["file"])) for r in record]
        assert (np.concatenate(singles, 1) == row).all()
    assert not (rows[0] == rows[2]).all()
    dbt("sample", kept, "a dog", "{identifier}", "-n", 2, "--step", "2", "--out", tmp_path / "one",
        "--steps", 2)  # fmt: skip
    for name in ("000.png", "003.png"):
        one = np.asarray(Image.open(tmp_path / "one" / name))
        assert (one == np.asarray(Image.open(out / "step-000002" / name))).all()
