"""The loss on the fixed batch: right, the same for the same weights, and without any trace."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth import FreezingPolicy, Prior, hookimpl
from dreambooth.engine.batches import Batches
from dreambooth.engine.context import EngineContext
from dreambooth.engine.data.fixed import split
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet, late_progress
from dreambooth.engine.session import open_session
from dreambooth.engine.step import train_step
from dreambooth.engine.watching import validation
from dreambooth.errors import JobError
from dreambooth.helpers.random import generator
from dreambooth.interfaces import Item, PriorRow, PriorSet
from dreambooth.plugins import registry_with

ON = {"every": 2, "rows": 6}


@pytest.fixture
def open_for(small_job):
    with ExitStack() as stack:

        def make(**sections):
            job = small_job(**{"validation": ON, **sections})
            devices = stack.enter_context(open_devices(job.train))
            compute = Precision("fp32", devices.device)
            ctx = EngineContext(job, devices.device, compute, job.folder, Quiet(), devices)
            return open_session(ctx, job.data.scan(ctx))

        yield make


def losses(session):
    return validation.losses(session)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder, name="validation/loss"):
    return {line["step"]: line[name] for line in lines(folder) if name in line}


def result_weights(folder):
    files = sorted((folder / "final").rglob("*.safetensors"))
    return {f"{f.parent.name}/{n}": t for f in files for n, t in load_file(f).items()}


# --- the number --------------------------------------------------------------------------------


def by_hand(folder, pictures, prompts, rows, class_latents):
    """Both halves with plain diffusers and transformers calls; ours are the drawn numbers alone."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    length = min(tokenizer.model_max_length, text.config.max_position_embeddings)
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    halves = []
    for is_class in (False, True):
        errors = []
        for i in range(rows):
            rng = generator(0, *(("validation-class", i, 0) if is_class else ("validation", i)))
            if is_class:
                z, prompt = class_latents[i][None], "a photo of a dog"
            else:
                picture, prompt = pictures[i % len(pictures)], prompts[i % len(prompts)]
                pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
                moments = vae.encode(pixels.float() / 127.5 - 1).latent_dist
                noise = torch.randn(moments.mean.shape[1:], generator=rng)
                z = (moments.mean + moments.std * noise) * vae.config.scaling_factor
            torch.randint(0, 1000, (1,), generator=rng)  # the drawn timestep is not used
            noise = torch.randn(z.shape[1:], generator=rng)[None]
            t = torch.tensor([int((i + 0.5) * 1000 / rows)])
            padded = {"padding": "max_length", "max_length": length, "truncation": True}
            ids = tokenizer([prompt], return_tensors="pt", **padded).input_ids
            target = scheduler.get_velocity(z, noise, t) if v_prediction else noise
            noisy = scheduler.add_noise(z, noise, t)
            pred = unet(noisy, t, encoder_hidden_states=text(ids)[0]).sample
            errors.append(float(((pred - target) ** 2).mean()))
        halves.append(sum(errors) / rows)
    return halves


@pytest.fixture
def square_pictures(pictures):
    """Pictures of the training size: nothing is cropped or resized."""
    images = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        images.append(Image.fromarray(pixels))
        images[-1].save(pictures / f"{i}.png")
    return images


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_equals_plain_diffusers(
    open_for, tiny_model, tmp_path, square_pictures, prediction, batch_size, emit
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": prediction}))
    session = open_for(
        model={"kind": "stable_diffusion", "source": str(folder)},
        validation={"every": 2, "rows": 7, "batch_size": batch_size},
        # None of these is in the number: a plain error is measured.
        loss={"kind": "prior_preservation", "prior_weight": 0.25, "min_snr_gamma": 5.0},
        data={"flip": True, "caption_dropout": 0.5},
        train={"batch_size": 2},
    )
    found = losses(session)
    prompts = [f"picture {i} of ohwx dog" for i in range(3)]
    latents = [row.latents for row in session.prior.rows(range(7), 0)]
    with torch.no_grad():
        instance, of_class = by_hand(folder, square_pictures, prompts, 7, latents)
    apart = max(
        abs(found["validation/loss_instance"] - instance) / instance,
        abs(found["validation/loss_class"] - of_class) / of_class,
    )
    if batch_size == 4:
        emit(f"validation loss, {prediction}, apart from plain diffusers", f"{apart:.1e}")
    assert apart < 1e-6
    total = found["validation/loss_instance"] + 0.25 * found["validation/loss_class"]
    assert found["validation/loss"] == pytest.approx(total, rel=1e-12)


def test_without_class_rows_it_is_the_instance_loss(open_for):
    found = losses(open_for(prior="none"))
    assert set(found) == {"validation/loss", "validation/loss_instance"}
    assert found["validation/loss"] == found["validation/loss_instance"]


def disturb(session):
    """Do what a run does in between."""
    session.batches.make(17, 0)
    train_step(session)
    torch.rand(13)


@pytest.mark.parametrize("train", [["unet", "text_encoder"], ["unet"]], ids=["text", "unet"])
def test_the_same_weights_give_the_same_number_to_the_bit(open_for, train):
    session = open_for(freezing={"kind": "components", "train": train})
    first = losses(session)
    before = {n: p.detach().clone() for n, p in session.state.parameters.items()}
    disturb(session)
    assert losses(session) != first
    with torch.no_grad():
        for name, parameter in session.state.parameters.items():
            parameter.copy_(before[name])
    assert losses(session) == first
    assert (
        losses(open_for(name="another", freezing={"kind": "components", "train": train})) == first
    )


def test_it_depends_on_the_seed_and_on_nothing_that_only_trains(open_for):
    first = losses(open_for())
    others = {
        "name": {"name": "x"},
        "crops": {"data": {"crop": "random", "flip": True}},
        "batch": {"train": {"batch_size": 3, "accumulation": 2, "steps": 9}},
        "loss": {"loss": {"kind": "prior_preservation", "distance": "l1"}},
        "no cache": {"train": {"cache": False}},
    }
    for name, options in others.items():
        for key, value in losses(open_for(**options)).items():
            assert value == pytest.approx(first[key], rel=1e-6), name
    assert losses(open_for(train={"seed": 1})) != first


def test_it_looks_at_the_average_where_there_is_one(open_for):
    session = open_for(train={"ema": {"decay": 0.9}})
    for _ in range(3):
        disturb(session)
    trained = {n: p.detach().clone() for n, p in session.state.parameters.items()}
    found = losses(session)
    assert all(torch.equal(p, trained[n]) for n, p in session.state.parameters.items())
    with torch.no_grad():
        for name, parameter in session.state.parameters.items():
            parameter.copy_(session.state.ema[name])
    assert losses(session) == found
    session.state.ema = {n: t * 1.5 for n, t in session.state.ema.items()}
    assert losses(session) != found


def test_two_processes_share_the_rows(open_for, monkeypatch):
    session = open_for()
    alone = losses(session)
    parts = []
    for rank in (0, 1):
        devices = replace(session.ctx.devices, rank=rank, world_size=2)
        monkeypatch.setattr(session.ctx, "devices", devices)
        monkeypatch.setattr(type(devices), "join", lambda self, rows: parts.append(rows) or rows)
        losses(session)
    assert [[i for i, _ in rows] for rows in parts] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    monkeypatch.setattr(type(devices), "join", lambda self, rows: parts[0] + parts[1])
    assert losses(session) == pytest.approx(alone, rel=1e-6)


class BasePolicy(FreezingPolicy):
    """Trains the UNet and can show the base."""

    kind: Literal["with_base"] = "with_base"

    def trainable(self, model):
        return dict(model.named_parameters("unet"))

    @contextmanager
    def showing_base(self, model):
        now = {n: p.detach().clone() for n, p in model.named_parameters("unet")}
        base = model.stored_weights("unet")
        with torch.no_grad():
            for name, parameter in model.named_parameters("unet"):
                parameter.copy_(base[name])
            yield
            for name, parameter in model.named_parameters("unet"):
                parameter.copy_(now[name])


class MirrorRows(PriorSet):
    def rows(self, indices, step):
        return [PriorRow("a photo of a dog", None, target="reference") for _ in indices]


class MirrorPrior(Prior):
    """Holds the class prompt to what the base predicts."""

    kind: Literal["mirrored"] = "mirrored"

    def open(self, ctx, model, sampler, schedule):
        return MirrorRows()

    def prompts(self, subject):
        return ["a photo of a dog"]


class Plugin:
    @hookimpl
    def register_freezing_policies(self):
        return [BasePolicy]

    @hookimpl
    def register_priors(self):
        return [MirrorPrior]


def test_rows_held_to_the_base_measure_the_way_from_it(open_for):
    with registry_with(Plugin()):
        session = open_for(prior="mirrored", freezing="with_base")
        assert losses(session)["validation/loss_class"] < 1e-10  # two batch sizes: rounding
        disturb(session)
        assert losses(session)["validation/loss_class"] > 0.0


# --- no trace ----------------------------------------------------------------------------------


def test_it_leaves_no_trace(open_for):
    session = open_for(train={"ema": {"decay": 0.9}})
    train_step(session)
    part = session.model.parts["unet"]
    part.conv_in.eval()  # a policy may hold a module still while the part trains
    modes = {name: module.training for name, module in part.named_modules()}
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    embeddings = dict(session.model.embeddings)
    losses(session)
    assert torch.equal(torch.get_rng_state(), rng)
    assert {name: module.training for name, module in part.named_modules()} == modes
    assert modes["conv_in"] is False
    assert modes["conv_out"] is True
    assert session.model.embeddings == embeddings
    assert all(p.grad is None and p.requires_grad for p in session.state.parameters.values())


@pytest.mark.parametrize(
    "options",
    [
        {"train": {"steps": 6, "ema": {"decay": 0.9}, "accumulation": 2}},
        {"train": {"steps": 6}, "freezing": {"kind": "components", "train": ["unet"]}},
        {
            "train": {"steps": 6},
            "data": {"crop": "random", "caption_dropout": 0.4},
            "prior": {"when": "alongside", "reuse": 1, "count": 4, "batch_size": 2},
        },
    ],
    ids=["ema, text encoder", "frozen text", "random crops, alongside"],
)
def test_training_is_the_same_to_the_bit_with_and_without(small_job, options):
    options = {**options, "samples": {"every": 3, "per_prompt": 1}}
    without = run(small_job(name="without", **options))
    with_it = run(small_job(name="with", validation={"every": 1, "rows": 4}, **options))
    one, two = (result_weights(r.folder) for r in (without, with_it))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rest = [line for line in lines(with_it.folder) if "validation/loss" not in line]
    assert rest == lines(without.folder)
    assert list(curve(with_it.folder)) == [0, 1, 2, 3, 4, 5, 6]


# --- held-out images ---------------------------------------------------------------------------


def test_held_out_images_never_train_and_make_up_the_batch(small_job, pictures, monkeypatch):
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    (pictures / "copy.txt").write_text("the same again, ohwx dog")
    seen, make, used = set(), Batches.make, []

    def spying(self, step, micro):
        batch = make(self, step, micro)
        seen.update(batch.ids[:2])
        return batch

    monkeypatch.setattr(Batches, "make", spying)
    from dreambooth.engine import events

    losses_of = events.Events.validate

    def watching(self):
        used.append(set(self._session.fixed.ids[:6]))
        losses_of(self)

    monkeypatch.setattr(events.Events, "validate", watching)
    job = small_job(
        validation={**ON, "holdout": 1},
        train={"steps": 12, "batch_size": 2},
        data={"flip": True},
    )
    result = run(job)
    manifest = json.loads((result.folder / "manifest.json").read_text())
    held = set(manifest["held_out"])
    assert seen == {"0.png", "1.png", "2.png", "copy.png"} - held
    assert held in ({"0.png", "copy.png"}, {"1.png"}, {"2.png"})  # copies stay together
    assert all(ids == held for ids in used)
    assert len(used) == 7
    assert manifest["images"].keys() == {"0.png", "1.png", "2.png", "copy.png"}


def items(*contents):
    return tuple(Item(f"{c}.png", None, c, (32, 32)) for c in contents)


def test_the_choice_is_a_function_of_seed_and_content(small_job):
    job = small_job(validation={**ON, "holdout": 2})
    first = {i.sha256 for i in split(job, items(*"abcdefgh")).held_out}
    assert len(first) == 2
    renamed = tuple(replace(item, id=f"x{item.id}") for item in reversed(items(*"abcdefgh")))
    assert {i.sha256 for i in split(job, renamed).held_out} == first
    without = [c for c in "abcdefgh" if c not in first]
    fewer = {i.sha256 for i in split(job, items(*(first | {without[0]}))).held_out}
    assert fewer == first  # whoever else is there moves nobody
    seeds = [small_job(validation={**ON, "holdout": 2}, train={"seed": s}) for s in range(8)]
    assert len({frozenset(i.id for i in split(j, items(*"abcdefgh")).held_out) for j in seeds}) > 3


@pytest.mark.parametrize(
    ("holdout", "count"), [(0, 0), (0.0, 0), (1, 1), (4, 4), (0.2, 1), (0.5, 2), (0.01, 1)]
)
def test_a_number_or_a_share(small_job, holdout, count):
    parts = split(small_job(validation={**ON, "holdout": holdout}), items(*"abcde"))
    assert len(parts.held_out) == count
    assert len(parts.training) == 5 - count


def test_something_must_be_left_to_train_on(small_job):
    with pytest.raises(JobError, match="holding 3 of 3 different pictures out"):
        run(small_job(validation={**ON, "holdout": 3}))


def test_a_picture_that_trained_before_and_is_held_out_now_is_named(small_job, pictures):
    warned = []

    class Listening(Quiet):
        def warn(self, message):
            warned.append(message)

    job = small_job(validation={**ON, "holdout": 1})
    held = json.loads((run(job).folder / "manifest.json").read_text())["held_out"]
    assert not warned
    (pictures / held[0]).unlink()
    run(small_job(validation={**ON, "holdout": 1}, train={"steps": 5}), reporter=Listening())
    now = json.loads((job.folder / "manifest.json").read_text())["held_out"]
    assert f"picture {now[0]} is held out now, but the run has trained on it before" in warned


# --- progress ----------------------------------------------------------------------------------


def test_progress_shows_once_it_takes_long(monkeypatch):
    clock, shown = [0.0], []

    class Bar:
        def advance(self, count=1):
            shown.append(count)

    class Showing(Quiet):
        @contextmanager
        def progress(self, label, total):
            shown.append((label, total))
            yield Bar()
            shown.append("end")

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with late_progress(Showing(), "Validating", 4) as bar:
        bar.advance()
        clock[0] = 1.9
        bar.advance()
        assert shown == []
        clock[0] = 2.1
        bar.advance()
        bar.advance()
    assert shown == [("Validating", 4), 3, 1, "end"]
