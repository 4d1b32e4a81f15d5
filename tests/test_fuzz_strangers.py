"""Adapter files, model folders and checkpoints of strangers, spoilt at random.

Through `dbt validate` and `dbt run --dry-run`: an error in words or a good plan, never a traceback,
never over ten seconds or 2 GiB. `make test-slow` tries thousands of each.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from dreambooth.engine.cost import plan
from dreambooth.engine.loop import run
from dreambooth.errors import UserError
from dreambooth.jobs.loading import load_job
from spoiling import fuzz
from spoilt_checkpoint import NEW
from spoilt_checkpoint import apply as spoil_checkpoint
from spoilt_checkpoint import change as checkpoint_change
from strangers import Change, Tally, apply, inside, raw, tensors, try_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYER = "encoder.layers.0.self_attn"
LAYERS = {
    f"unet.{BLOCK}.attn1.to_q": (32, 32), f"unet.{BLOCK}.attn2.to_k": (32, 32),
    f"unet.{BLOCK}.ff.net.2": (32, 128), f"text_encoder.text_model.{LAYER}.q_proj": (32, 32),
}  # fmt: skip
"""Layers of the tiny model: outputs and inputs."""


def job_file(folder: Path, **sections: Any) -> Path:
    """Write a job on the tiny model whose plan takes a moment."""
    pictures = folder / "pictures"
    if not pictures.is_dir():
        pictures.mkdir(parents=True)
        for number, color in enumerate(["red", "blue"]):
            Image.new("RGB", (40, 40), color).save(pictures / f"{number}.png")
    base = {
        "name": "small", "output": "runs", "prior": "none", "samples": {"every": 0},
        "model": {"kind": "stable_diffusion", "source": "builtin:tiny"}, "trackers": ["jsonl"],
        "subject": {"identifier": "ohwx", "class_noun": "dog"}, "log": {"every": 1},
        "data": {"kind": "folder", "path": "pictures", "resolution": 32},
        "train": {"steps": 4, "precision": "fp32"},
    }  # fmt: skip
    file = folder / "job.yaml"
    file.write_text(json.dumps({**base, **sections}))
    return file


@pytest.fixture
def tally(request: pytest.FixtureRequest, emit: Any) -> Iterator[Tally]:
    """What the test has seen, printed at its end, whatever that is."""
    found = Tally()
    yield found
    emit(request.node.name, found)


def once(function: Any) -> Any:
    """Return a function that is called the first time and gives the same answer ever after."""
    answers: list[Any] = []

    def call(*args: Any) -> Any:
        if not answers:
            answers.append(function(*args))
        return answers[0]

    return call


def factors(out: int, inputs: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rank, inputs), 0.1), torch.full((out, rank), 0.1)


def write_adapters(folder: Path) -> list[list[Path]]:
    """Write good LoRA files: diffusers' names with metadata, kohya's, and PEFT's with a config."""
    named: dict[str, dict[str, torch.Tensor]] = {"diffusers": {}, "kohya": {}, "peft": {}}
    for name, (out, inputs) in LAYERS.items():
        down, up = factors(out, inputs)
        named["diffusers"] |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        part, _, module = name.partition(".")
        at = f"lora_{'unet' if part == 'unet' else 'te'}_{module.replace('.', '_')}"
        pair = {f"{at}.lora_down.weight": down.clone(), f"{at}.lora_up.weight": up.clone()}
        named["kohya"] |= {**pair, f"{at}.alpha": torch.tensor(2.0)}
        if part == "unet":
            at = f"base_model.model.{module}"
            pair = {f"{at}.lora_A.weight": down.clone(), f"{at}.lora_B.weight": up.clone()}
            named["peft"] |= pair
    options = {
        "unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {f"{BLOCK}.attn1.to_q": 2},
        "unet.use_rslora": False, "text_encoder.lora_alpha": 2,
    }  # fmt: skip
    about: dict[str, dict[str, str]] = {
        "diffusers": {"lora_adapter_metadata": json.dumps(options)},
        "kohya": {"ss_network_dim": "2", "ss_base_model_version": "sd_v1"},
        "peft": {},
    }
    written = []
    for kind, found in named.items():
        (folder / kind).mkdir(parents=True)
        file = folder / kind / "adapter_model.safetensors"
        save_file(found, file, {"format": "pt", **about[kind]})
        written.append([file])
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_k": 1}}
    beside = folder / "peft/adapter_config.json"
    beside.write_text(json.dumps(config))
    written[-1].append(beside)
    return written


@pytest.mark.parametrize("examples", [40, pytest.param(5000, marks=pytest.mark.slow)])
def test_spoilt_adapter_files(tmp_path: Path, examples: int, tally: Tally) -> None:
    good = write_adapters(tmp_path / "good")
    freezing = {"kind": "adapter", "train": ["unet", "text_encoder"]}
    jobs = {
        files[0].parent.name: job_file(
            tmp_path / files[0].parent.name, freezing={**freezing, "init": f"lora{named}"}
        )
        for files, named in zip(good, ["/adapter_model.safetensors", "", ""], strict=True)
    }
    for job in jobs.values():
        shutil.copytree(tmp_path / "good" / job.parent.name, job.parent / "lora")
        assert try_job(job, Tally()) == "good"

    def check(number: int, changes: list[Change]) -> None:
        folder = good[number][0].parent
        job = jobs[folder.name]
        shutil.rmtree(job.parent / "lora")
        shutil.copytree(folder, job.parent / "lora")
        apply([job.parent / "lora" / file.name for file in good[number]], changes)
        try_job(job, tally)

    changes = st.lists(
        st.one_of(raw, inside, inside, tensors, tensors, tensors, tensors), min_size=1, max_size=2
    )
    fuzz(examples, st.integers(0, len(good) - 1), changes, check=check)
    tally.check()
    assert min(tally.seen["good"], tally.seen["refused by validate"]) > examples // 50
    assert tally.seen["refused by plan"] or examples < 1000  # a few layers that do not fit


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("examples", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_spoilt_model_folders(
    tiny_model: Path, tmp_path: Path, examples: int, tally: Tally
) -> None:
    model = {"kind": "stable_diffusion", "source": "model"}
    job, folder = job_file(tmp_path, model=model), tmp_path / "model"
    names = sorted(f.relative_to(tiny_model) for f in tiny_model.rglob("*") if f.is_file())
    configs = [n for n in names if n.name in {"config.json", "scheduler_config.json"}] * 3

    def check(only_configs: bool, changes: list[Change]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_model, folder, copy_function=os.link)
        chosen = configs if only_configs else [*names, *configs]
        apply([folder / name for name in chosen], changes)
        try_job(job, tally)

    check(False, [])
    assert tally.seen["good"] == 1
    changes = st.lists(st.one_of(raw, inside, inside, tensors), min_size=1, max_size=2)
    fuzz(examples, st.booleans(), changes, check=check)
    tally.check()
    assert min(tally.seen["good"], tally.seen["refused by validate"]) > examples // 50


@pytest.mark.parametrize(
    ("examples", "runs"), [(16, 2), pytest.param(2000, 50, marks=pytest.mark.slow)]
)
def test_spoilt_checkpoints_of_strangers(
    tmp_path: Path, examples: int, runs: int, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--resume-from` is given; now and then the run goes on for three steps."""
    trains = {"kind": "components", "train": ["text_encoder"]}
    ema = {"steps": 4, "precision": "fp32", "ema": {"decay": 0.9}}
    job = job_file(tmp_path / "theirs", freezing=trains, checkpoints={"every": 2}, train=ema)
    theirs = run(load_job(job)).folder / "checkpoints"
    longer = {**ema, "steps": 7}
    mine = job_file(tmp_path / "mine", freezing=trains, checkpoints={"every": 99}, train=longer)
    shown = tmp_path / "shown" / NEW
    # Job and model are always the same: their shapes, most of a plan's time, are counted once.
    monkeypatch.setattr(plan, "count_model", once(plan.count_model))
    assert try_job(mine, Tally(), "--resume-from", str(theirs / NEW)) == "good"

    def check(changes: Any, rehash: bool) -> None:
        shutil.rmtree(shown.parent, ignore_errors=True)
        shutil.copytree(theirs, shown.parent)
        spoil_checkpoint(shown, changes, rehash=rehash)
        outcome = try_job(mine, tally, "--resume-from", str(shown))
        # By what was drawn, not by a count: the same input does the same once more.
        if zlib.crc32(repr((changes, rehash)).encode()) % examples < 2 * runs:
            goes_on(outcome)

    def goes_on(outcome: str) -> None:
        job = load_job(mine)
        refused: UserError | None = None
        try:
            assert run(job, resume_from=str(shown)).steps == 7
        except UserError as error:
            refused = error
        finally:  # a run with checkpoints of its own takes no others
            shutil.rmtree(job.folder, ignore_errors=True)
        if refused is None:
            assert outcome == "good"
            tally.seen["run went on"] += 1
        else:
            assert len(refused.message) > 20
            assert refused.hint
            tally.seen["run refused"] += 1

    fuzz(examples, st.lists(checkpoint_change, min_size=1, max_size=2), st.booleans(), check=check)
    tally.check()
    assert min(tally.seen["good"], tally.seen["refused by plan"]) > examples // 50
    assert min(tally.seen["run refused"], tally.seen["run went on"]) >= runs // 10
    assert tally.seen["run refused"] + tally.seen["run went on"] >= runs
