"""The flow-matching families trained through the program: policies, priors, losses they take."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file

from dreambooth.engine.loop import run
from dreambooth.errors import JobError
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import settled, warnings
from dreambooth_plugins.model import Auto

NAMES = tuple(tiny.MODELS)
LORA = {"kind": "adapter", "train": ["denoiser"]}
BOTH = {"kind": "adapter", "train": ["transformer", "text_encoder"], "targets": "attention+mlp"}
CASES = {
    "previews": {"freezing": LORA, "samples": {"every": 2, "per_prompt": 1}},
    "full": {"freezing": {"kind": "components", "train": ["transformer"]}},
    "mirror": {"freezing": LORA, "prior": "mirror"},
    "dco": {"freezing": LORA, "prior": "none", "loss": {"kind": "dco", "beta": 1}},
    "patterns": {"freezing": {"kind": "patterns", "train": ["transformer.*.1.*to_q*"]}},
    "authors": {"freezing": {**LORA, "targets": ["authors"]}, "prior": "none"},
}
QUICK = {("flux", "previews"), ("z_image", "mirror")}
PRIOR = {"kind": "generated", "count": 2, "batch_size": 2}


def of(small_job, family, **sections):
    """A job on a tiny model whose scheduler and sampler are left to the family."""
    model = {"kind": family, "source": str(tiny.folder(family))}
    options = {"model": model, "sampler": {"kind": "auto", "steps": 2}, "prior": PRIOR}
    return small_job(**{**options, **sections})


def losses(result):
    rows = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["train/loss"] for row in rows]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(n, c, marks=() if (n, c) in QUICK else pytest.mark.slow)
        for n in NAMES
        for c in CASES
    ],
)
def test_a_run_trains_exports_and_is_read_back(small_job, name, case):
    result = run(of(small_job, name, train={"steps": 2}, **CASES[case]))
    found = losses(result)
    assert len(found) == 2
    assert all(0 < loss < 100 for loss in found), found
    assert list((result.folder / "final").rglob("*.safetensors"))
    if case == "previews":
        assert list((result.folder / "samples").rglob("*.png"))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "flux" else pytest.mark.slow) for n in NAMES]
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(small_job, name):
    options = {"freezing": LORA, "checkpoints": {"every": 1}}
    whole = run(of(small_job, name, name="whole", train={"steps": 3}, **options))
    run(of(small_job, name, name="parts", train={"steps": 1}, **options))
    parts = run(of(small_job, name, name="parts", train={"steps": 3}, **options))
    assert losses(parts) == losses(whole)
    one, other = (
        load_file(next((r.folder / "final").glob("*.safetensors"))) for r in (whole, parts)
    )
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[key]) for key, tensor in one.items())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "sd3" else pytest.mark.slow) for n in ("flux", "sd3")]
)
def test_clip_encoders_train_beside_the_transformer(small_job, name):
    result = run(of(small_job, name, freezing=BOTH, prior="none", train={"steps": 2}))
    written = load_file(result.folder / "final/pytorch_lora_weights.safetensors")
    moved = [n for n, tensor in written.items() if n.startswith("text_encoder.") and "up" in n]
    if name == "sd3":
        assert any(written[n].abs().sum() > 0 for n in moved)
    else:  # FLUX.1 reads the pooled text of the last layer, so that all of it learns
        assert all(written[n].abs().sum() > 0 for n in moved)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_open_is_the_familys(small_job, name):
    job = settled(of(small_job, name, freezing=LORA))
    assert (job.scheduler.kind, job.sampler.kind) == ("flow", "flow")
    assert job.sampler.guidance == ("embedded" if name == "flux" else "true")
    assert job.sampler.guidance_scale == job.model.describe().guidance_default
    assert not preflight(job)
    assert Auto(source=str(tiny.folder(name))).family().kind == name


FROZEN = {
    "flux": ("text_encoder_2", "a T5 encoder"),
    "sd3": ("text_encoder_3", "a T5 encoder"),
    "z_image": ("text_encoder", "a language model"),
    "flux2_klein": ("text_encoder", "a language model"),
    "qwen_image": ("text_encoder", "a language model"),
}


@pytest.mark.parametrize("name", NAMES)
def test_big_encoders_stay_frozen_and_validate_says_so(small_job, name):
    part, what = FROZEN[name]
    for freezing in (
        {"kind": "components", "train": ["transformer", part]},
        {"kind": "adapter", "train": ["transformer", "text_encoders"]},
        {"kind": "patterns", "train": ["transformer.*", f"{part}.*"]},
    ):
        said = [p.message for p in preflight(of(small_job, name, freezing=freezing))]
        assert any(part in message and what in message for message in said), said


@pytest.mark.parametrize("name", NAMES)
def test_words_are_refused_with_a_reason(small_job, name):
    subject = {"identifier": "<zyx>", "class_noun": "dog"}
    problems = preflight(of(small_job, name, freezing="token", subject=subject))
    assert any("frozen" in p.message and "reads" in p.message for p in problems)


@pytest.mark.parametrize(
    ("name", "options", "base"),
    [
        ("flux", {"guidance": False}, "FLUX.1-dev"),
        ("z_image", {"shift": 3.0}, "Tongyi-MAI/Z-Image"),
        ("flux2_klein", {"distilled": True}, "FLUX.2-klein-base"),
    ],
)
def test_distilled_models_are_warned_about_or_refused(small_job, ctx, name, options, base):
    source = str(tiny.folder(name, **options))
    job = of(small_job, name, model={"kind": name, "source": source}, freezing=LORA)
    [said] = [text for text in warnings(job) if "distilled" in text]
    assert base in said
    assert settled(job).sampler.guidance == "none"
    job.model.open(ctx)
    assert ctx.warnings == [said]
    refused = {"kind": name, "source": source, "distilled": "refuse"}
    [problem] = preflight(of(small_job, name, model=refused, freezing=LORA))
    assert base in problem.hint
    assert not warnings(of(small_job, name, freezing=LORA)) or name == "flux"


@pytest.mark.slow
def test_t5_may_be_absent(small_job, tmp_path):
    """The transformer then reads zeros in its place, and so it is saved."""
    import diffusers

    source = tiny.folder("sd3", with_t5=False)
    model = {"kind": "sd3", "source": str(source)}
    full = {"kind": "components", "train": ["transformer"]}
    result = run(of(small_job, "sd3", model=model, freezing=full, train={"steps": 1}))
    assert "text_encoder_3" not in (p.name for p in (result.folder / "final").iterdir())
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        result.folder / "final", text_encoder_3=None, tokenizer_3=None
    )
    assert pipe.text_encoder_3 is None


def test_dropout_of_t5_stays_off(open_for):
    session = open_for(
        model={"kind": "flux", "source": str(tiny.folder("flux"))},
        sampler={"kind": "auto", "steps": 2},
        freezing=BOTH,
        prior="none",
    )
    t5 = session.model.parts["text_encoder_2"]
    assert t5.config.dropout_rate == 0.1
    assert not any(module.training for module in t5.modules())
    one, other = (session.model.encode_part("text_encoder_2", ["a dog"])[0] for _ in range(2))
    assert torch.equal(one.tensors["embeds"], other.tensors["embeds"])


def test_a_folder_of_mixed_parts_is_told(tmp_path):
    import shutil

    from dreambooth_plugins.model import Flux

    where = tmp_path / "model"
    shutil.copytree(tiny.folder("flux"), where)
    file = where / "transformer/config.json"
    config = json.loads(file.read_text())
    for changed, said in [
        ({"joint_attention_dim": 64}, "expects text of 64"),
        ({"num_layers": 100000}, "num_layers"),
        ({"axes_dims_rope": [4, 4, 4]}, "heads"),
    ]:
        file.write_text(json.dumps({**config, **changed}))
        with pytest.raises(JobError, match=said):
            Flux(source=str(where)).describe()
    file.write_text(json.dumps(config))
    index = where / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "FluxFillPipeline"))
    with pytest.raises(JobError, match="FluxFillPipeline"):
        Flux(source=str(where)).describe()
