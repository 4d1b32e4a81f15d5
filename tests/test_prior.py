"""Prior preservation: class images are made once, completed, and made anew when they must be."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from dreambooth.engine.context import EngineContext
from dreambooth.engine.data.text import run_prompts
from dreambooth.engine.devices.precision import Precision
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import dump_job, load_job
from dreambooth_plugins.sampler.cfg import ClassifierFreeGuidance

COUNT = 6


@pytest.fixture
def drawn(monkeypatch):
    """Count pictures the sampler draws."""
    calls = []
    sample = ClassifierFreeGuidance.sample

    def counting(self, model, prompts, **options):
        calls.extend(prompts)
        return sample(self, model, prompts, **options)

    monkeypatch.setattr(ClassifierFreeGuidance, "sample", counting)
    return calls


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch, tiny_model):
    """Give each test an empty store (the tiny model is addressed by its folder)."""
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "store"))


@pytest.fixture
def make(small_job, tiny_model):
    def job(**sections):
        model = {"kind": "stable_diffusion", "source": str(tiny_model)}
        prior = {"kind": "generated", "count": COUNT, "batch_size": 3}
        given = sections.pop("prior", {})
        prior = given if given.get("kind") else {**prior, **given}
        options = {"model": model, "prior": prior, "train": {"steps": 2}, "exports": []}
        return small_job(**{**options, **sections})

    return job


def test_a_second_run_draws_nothing(make, drawn):
    run(make(name="one"))
    assert drawn == ["a photo of a dog"] * COUNT
    drawn.clear()
    run(make(name="two", optimizer={"lr": 1e-4}, train={"steps": 2, "seed": 5}))
    assert drawn == []


@pytest.mark.parametrize(
    "change",
    [
        {"prior": {"prompt": "a picture of a {class_noun}"}},
        {"prior": {"seed": 1}},
        {"subject": {"identifier": "ohwx", "class_noun": "cat"}, "data": {"captions": "none"}},
        {"data": {"resolution": 40}},
        {"sampler": {"guidance_scale": 3.0}},
        {"sampler": {"steps": 3}},
    ],
    ids=lambda c: "/".join(f"{k}.{next(iter(v))}" for k, v in c.items()),
)
def test_a_changed_set_is_drawn_anew(make, drawn, change):
    run(make(name="one"))
    drawn.clear()
    run(make(name="two", **change))
    assert len(drawn) == COUNT


def test_a_changed_model_has_its_own_set(make, drawn, tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    run(make(name="one"))
    drawn.clear()
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    file = other / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    run(make(name="two", model={"source": str(other)}))
    assert len(drawn) == COUNT


def test_more_images_only_add_to_the_set(make, drawn):
    run(make(name="one"))
    drawn.clear()
    run(make(name="two", prior={"count": COUNT + 3}))
    assert len(drawn) == 3


def test_a_half_finished_set_is_completed_with_the_same_bits(make, drawn, tmp_path):
    result = run(make(name="one"))
    [entry] = (tmp_path / "store/class-latents").iterdir()
    chunk = entry / "chunk-000001.safetensors"
    before = chunk.read_bytes()
    chunk.unlink()
    drawn.clear()
    run(make(name="two"))
    assert len(drawn) == 3
    assert chunk.read_bytes() == before
    shown = json.loads((result.folder / "prior/class-images.json").read_text())
    assert len(set(shown["seeds"])) == COUNT
    with Image.open(result.folder / "prior/000.png") as image:
        assert image.size == (32, 32)
        assert json.loads(image.text["dreambooth"])["seed"] == shown["seeds"][0]


def test_own_pictures_are_class_rows_too(make, pictures, tmp_path):
    own = tmp_path / "class"
    own.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (40 * i, 90, 20)).save(own / f"{i}.png")
    result = run(make(prior={"kind": "folder", "path": own}))
    assert result.scalars["train/loss_prior"] > 0


def open_prior(job, devices, model):
    ctx = EngineContext(job, devices.device, Precision("fp32", devices.device), job.folder, Quiet())
    return job.prior.open(ctx, model, job.sampler, job.scheduler.open(model.info))


def test_alongside_draws_from_the_base_however_far_training_is(make, drawn):
    job = make(prior={"when": "alongside", "reuse": 1, "count": 6, "batch_size": 3})
    with open_devices(job.train) as devices:
        precision = Precision("fp32", devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet())
        model = job.model.open(ctx)
        prior = open_prior(job, devices, model)
        for parameter in model.parts["unet"].parameters():
            parameter.data.add_(1.0)  # as training would
        windows = [prior.window(i) for i in (0, 2, 3, 5, 6, 20)]
        assert windows == [*map(range, (0, 0, 0, 0, 3, 15), (3, 3, 6, 6, 9, 21))]
        late = prior.rows([20], step=20)[0]
        picture = prior.pick(20)
        ahead = job.prior.model_copy(update={"when": "ahead", "count": 21})
        store_copy = job.model_copy(update={"prior": ahead, "name": "ahead"})
        fresh = open_prior(store_copy, devices, job.model.open(ctx))
        assert torch.equal(fresh.latents.row(picture)["latents"], late.latents)


def test_each_epoch_shows_every_class_image_once(make):
    job = make()
    with open_devices(job.train) as devices:
        ctx = EngineContext(
            job, devices.device, Precision("fp32", devices.device), job.folder, Quiet()
        )
        prior = open_prior(job, devices, job.model.open(ctx))
    epochs = [[prior.pick(e * COUNT + i) for i in range(COUNT)] for e in range(4)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert prior.pick(1) == epochs[0][1]  # going back, as a resumed run does


# --- a sampler of their own

OWN = {"sampler": {"kind": "cfg", "steps": 2, "guidance_scale": 3.0}}


def test_class_images_of_an_own_sampler_outlive_the_preview_s(make, drawn):
    run(make(name="one", prior=OWN))
    assert len(drawn) == COUNT
    drawn.clear()
    for number, change in enumerate(
        ({"steps": 3}, {"guidance_scale": 1.0}, {"negative": "blurry"}, {"solver": "euler"})
    ):
        run(make(name=f"two-{number}", prior=OWN, sampler=change))
    assert drawn == []
    run(make(name="three", prior={"sampler": {**OWN["sampler"], "guidance_scale": 4.0}}))
    assert len(drawn) == COUNT


def test_they_are_what_a_job_with_that_sampler_draws(make, drawn):
    """One entry of the store serves both."""
    run(make(name="one", prior=OWN, sampler={"steps": 5}))
    drawn.clear()
    run(make(name="two", sampler={"steps": 2, "guidance_scale": 3.0}))
    assert drawn == []


def test_its_faults_and_its_price_are_told(make):
    job = make(prior={"sampler": {"kind": "cfg", "steps": 1000}})
    [problem] = preflight(job)
    assert problem.at == ("prior", "sampler", "steps")
    assert "1000 sampling steps" in problem.message
    job = make(prior={"sampler": {"kind": "cfg", "steps": 3, "guidance_scale": 1.0}})
    assert job.prior.cost(job).forwards == COUNT * 3
    assert make().prior.cost(make()).forwards == COUNT * 2 * 2


def test_alongside_its_negative_prompt_is_encoded_beforehand(make, drawn):
    prior = {
        "when": "alongside", "count": 3, "reuse": 1,
        "sampler": {"kind": "cfg", "steps": 2, "negative": "blurry"},
    }  # fmt: skip
    freezing = {"kind": "components", "train": ["unet"]}
    job = make(prior=prior, freezing=freezing, train={"steps": 4})
    assert run(job).steps == 4
    assert len(drawn) > 3
    with open_devices(job.train) as devices:
        ctx = EngineContext(
            job, devices.device, Precision("fp32", devices.device), job.folder, Quiet(), devices
        )
        assert "blurry" in run_prompts(ctx, job.data.scan(ctx).items)


def test_a_job_file_says_it_and_says_what_is_wrong(make, tmp_path):
    job = make(prior=OWN)
    file = tmp_path / "job.yaml"
    file.write_text(dump_job(job))
    assert load_job(file) == job
    named = load_job(file, ["prior.sampler.steps=4"])
    assert named.prior.sampler.steps == 4
    with pytest.raises(JobErrors, match='did you mean "steps"'):
        load_job(file, ["prior.sampler.stpes=4"])
