"""Every trained stage, killed and resumed, ends in the bits of a straight run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import SMALL
from dreambooth.errors import JobError, RunError
from emoji_recipe import autoencoder, clip, denoiser, export, handover, loop, words
from emoji_recipe.settings import RecipeSettings

STAGES = {"autoencoder": autoencoder, "clip": clip, "denoiser": denoiser}


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def trained(npm: Path, tmp_path_factory: pytest.TempPathFactory) -> RecipeSettings:
    """Run every stage straight through, once."""
    folder = tmp_path_factory.mktemp("recipe")
    settings = RecipeSettings.model_validate(
        SMALL | {"npm": npm, "work": folder / "work", "out": folder / "out"}
    )
    words.run(settings)
    for module in STAGES.values():
        assert module.train(settings)
    return settings


def state(work: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(work / stage / loop.STATE)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def borrow(settings: RecipeSettings, work: Path, stage: str) -> RecipeSettings:
    """Return the settings with a work folder that has all but the stage's own results."""
    work.mkdir()
    for name in ("data", *STAGES):
        if name != stage:
            (work / name).symlink_to(settings.work / name)
    return settings.model_copy(update={"work": work, "save_every": 1e-9})


@pytest.mark.parametrize("stage", STAGES)
def test_stage_killed_between_any_two_saves_ends_in_the_same_bits(
    stage: str, trained: RecipeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = borrow(trained, tmp_path / "work", stage)
    real, left = loop.train_step, [2, 1]

    def until_killed(*args: object) -> object:
        if left and left[0] == 0:
            left.pop(0)
            raise KilledError
        if left:
            left[0] -= 1
        return real(*args)

    monkeypatch.setattr(loop, "train_step", until_killed)
    for _ in range(2):
        with pytest.raises(KilledError):
            STAGES[stage].train(settings)
    assert STAGES[stage].train(settings)
    assert same(state(settings.work, stage), state(trained.work, stage))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("stage", STAGES)
def test_rows_drawn_ahead_by_workers_end_in_the_same_bits(
    stage: str, trained: RecipeSettings, tmp_path: Path
) -> None:
    settings = borrow(trained, tmp_path / "work", stage)
    assert STAGES[stage].train(settings.model_copy(update={"workers": 2}))
    assert same(state(settings.work, stage), state(trained.work, stage))


def test_minutes_bound_a_call_and_not_the_stage(
    trained: RecipeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = borrow(trained, tmp_path / "work", "clip")
    assert not clip.train(settings, minutes=1e-9)
    assert "saved at step 0 of 6" in capsys.readouterr().out
    assert clip.train(settings, minutes=5)
    assert same(state(settings.work, "clip"), state(trained.work, "clip"))


def test_state_of_other_settings_is_refused_by_their_names(trained: RecipeSettings) -> None:
    changed = trained.clip.model_copy(update={"lr": 5e-4, "steps": 9})
    with pytest.raises(RunError, match=r"lr 0\.001 -> 0\.0005"):
        clip.train(trained.model_copy(update={"clip": changed}))


def test_latents_of_the_newest_blocks_alone_are_kept(trained: RecipeSettings) -> None:
    kept = sorted(file.name for file in (trained.work / "denoiser" / "latents").iterdir())
    assert kept == ["00001.safetensors", "00002.safetensors"]


def test_whitened_latents_have_unit_deviation_and_draw_the_same_pictures(
    trained: RecipeSettings,
) -> None:
    pixels, _ = autoencoder.compositions(trained, 0, 8)
    vae = autoencoder.stage(trained).modules["vae"].eval()
    before = autoencoder.reconstruct(vae, autoencoder.to_float(pixels))
    with torch.no_grad():
        spread = vae.encode(autoencoder.to_float(pixels)).latent_dist
        autoencoder.whiten(vae, pixels)
        after = vae.encode(autoencoder.to_float(pixels)).latent_dist
    assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)
    # The deviation of a draw shrinks or grows with its channel.
    ratio = spread.mean.std(dim=(0, 2, 3)).view(1, 4, 1, 1)
    assert torch.allclose(after.std * ratio, spread.std, rtol=1e-2)
    drawn = autoencoder.reconstruct(vae, autoencoder.to_float(pixels))
    assert torch.allclose(drawn, before, atol=1e-4)


def test_exported_folder_draws_what_the_recipe_draws(trained: RecipeSettings) -> None:
    export.run(trained)
    pipe = export.open_pipeline(trained.out / export.PIPELINE)
    network, text = denoiser.averaged(trained)
    prompts = ["a photo of a dog on a red background", "a photo of a cat"]
    there = export.sample(pipe, prompts, trained, "same")
    here = denoiser.draw(trained, network, text, prompts, "same")
    assert there.shape == here.shape == (2, 3, 128, 128)
    # Weights are written in half precision.
    assert (there - here).abs().mean() < 0.02
    assert (there - there.flip(0)).abs().mean() > 0.02


def test_shipped_base_goes_on_elsewhere_from_its_average(
    trained: RecipeSettings, tmp_path: Path
) -> None:
    export.run(trained)
    # Another batch is no other base; other widths are.
    longer = trained.denoiser.model_copy(update={"steps": 8, "batch": 6})
    here = trained.model_copy(update={"work": tmp_path / "work", "denoiser": longer})
    handover.unpack(here)
    assert not (here.work / "denoiser" / loop.STATE).exists()
    stage = denoiser.stage(here)
    numbers = loop.load(stage, here)
    assert (numbers["step"], numbers["begun"]) == (6, 6)
    average = {n: v for n, v in state(trained.work, "denoiser").items() if n.startswith("ema.")}
    for name, param in loop.named_parameters(stage.modules):
        assert torch.equal(param, average[f"ema.{name}"].half().float())
        assert stage.ema is not None
        assert torch.equal(stage.ema.shadow[name], param)
    assert denoiser.train(here)
    wider = longer.model_copy(update={"widths": (16, 16, 32)})
    other = here.model_copy(update={"work": tmp_path / "other", "denoiser": wider})
    handover.unpack(other)
    with pytest.raises(RunError, match="widths"):
        denoiser.train(other)
    with pytest.raises(RunError, match="holds no trained base"):
        handover.unpack(here.model_copy(update={"out": tmp_path / "nowhere"}))


def test_a_flow_is_not_exported_as_stable_diffusion(trained: RecipeSettings) -> None:
    flow = trained.denoiser.model_copy(update={"objective": "flow"})
    with pytest.raises(JobError, match="unet that predicts flow"):
        export.run(trained.model_copy(update={"denoiser": flow}))


def test_pictures_drawn_beforehand_are_what_clip_learns_from(
    trained: RecipeSettings, tmp_path: Path
) -> None:
    kept = trained.clip.model_copy(update={"pictures": 5})
    settings = borrow(trained, tmp_path / "work", "clip").model_copy(update={"clip": kept})
    pixels, _ = autoencoder.compositions(settings, 0, 5)
    seen = torch.cat([clip.stage(settings).rows(step, 0.0)["pixels"] for step in (3, 4)])
    assert all(any(torch.equal(one, other) for other in pixels) for one in seen)
    assert len({one.sum().item() for one in seen}) > 1


@pytest.mark.slow
def test_recipe_killed_at_random_and_run_again_ends_in_the_same_bits(
    npm: Path, tmp_path: Path
) -> None:
    longer = json.loads(json.dumps(SMALL)) | {"save_every": 0.5}
    for stage in STAGES:
        longer[stage]["steps"] = 150
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(longer))
    plugins = Path(autoencoder.__file__).parents[1]

    def command(work: str, stage: str) -> list[str]:
        options = ["--work", str(tmp_path / work), "--npm", str(npm), "--config", str(file)]
        return [sys.executable, "-m", "emoji_recipe", "--stage", stage, *options]

    def run(work: str, stage: str, seconds: float | None) -> int:
        child = subprocess.Popen(
            command(work, stage), cwd=plugins, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if seconds is None:
            out, _ = child.communicate()
            assert child.returncode == 0, out.decode()[-2000:]
        else:
            time.sleep(seconds)
            child.send_signal(random.Random(seconds).choice([signal.SIGKILL, signal.SIGTERM]))
            child.communicate()
        return child.returncode

    kills = 0
    for stage in ("data", *STAGES):
        run("straight", stage, None)
        if stage == "data":
            run("killed", stage, None)
            continue
        for turn in range(4):
            code = run("killed", stage, 6 + 2.3 * turn)
            kills += code != 0 or not (tmp_path / "killed" / stage / "done").exists()
        run("killed", stage, None)
        assert same(state(tmp_path / "killed", stage), state(tmp_path / "straight", stage))
    assert kills
    assert os.path.exists(tmp_path / "killed" / "denoiser" / loop.STATE)
