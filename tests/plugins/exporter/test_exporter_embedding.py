"""A learned word as a file: both layouts, read back through `load_textual_inversion`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.results.draw import DrawRequest, draw_from_run
from dreambooth.jobs.checks import preflight
from dreambooth.jobs.identifiers import automatic_exporters
from dreambooth_plugins.exporter import Embedding, Kohya, Lora, Merged, SingleFile
from dreambooth_plugins.freezing import Adapter, Pivotal, Token
from dreambooth_plugins.model import StableDiffusion
from learning import digest, shake, tensors

WORD = "<my-dog>"
SUBJECT = {"identifier": WORD, "class_noun": "dog"}
TABLE = "text_model.embeddings.token_embedding.weight"
ROWS = "text_encoder.embeddings.token_embedding.new_rows"
FILE, A1111 = "learned_embeds.safetensors", "embeddings/my-dog.safetensors"
BOTH = ["unet", "text_encoder"]


@pytest.fixture
def trained(make_ctx, small_job):
    """Make a word that has moved: `trained(Token(vectors=2))` -> model, artifact, context."""

    def make(policy, **options):
        ctx = make_ctx(job=small_job(subject=SUBJECT), **options)
        model = StableDiffusion(source="builtin:tiny").open(ctx)
        policy.prepare(model, ctx)
        parameters = dict(policy.trainable(model))
        shake(parameters)
        return model, policy.artifact(model, {n: p.detach() for n, p in parameters.items()}), ctx

    return make


def export(exporter, made, dest):
    model, artifact, ctx = made
    dest.mkdir(exist_ok=True)
    exporter.write(artifact, model, dest, ctx, model.info.schedule)
    return exporter.verify(artifact, model, dest, ctx)


@pytest.mark.parametrize("vectors", [1, 3])
def test_both_layouts_hold_the_rows_and_draw_the_same(trained, tmp_path, vectors):
    made = trained(Token(vectors=vectors))
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(Embedding(), made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["text"] <= 1e-5
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["latents"] <= 1e-4
    rows = made[1].tensors[ROWS]
    assert rows.shape == (vectors, 32)
    for name, key in ((FILE, WORD), (A1111, "emb_params")):
        found = load_file(tmp_path / "out" / name)
        assert list(found) == [key]
        assert torch.equal(found[key], rows)
    found = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["learned_embeds.safetensors", "my-dog.safetensors"]
    assert {n: digest(t) for n, t in tensors(made[0]).items() if n in before} == before


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_compared_and_reported(trained, tmp_path, dtype):
    check = export(Embedding(dtype=dtype), trained(Token()), tmp_path / "out")
    assert check.ok, check.message
    assert 1e-6 < check.figures["text"] < 0.05
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert load_file(tmp_path / "out" / FILE)[WORD].dtype == wanted


def test_the_word_of_a_half_precision_base_is_written_whole(trained, tmp_path):
    made = trained(Token(vectors=2), dtype=torch.bfloat16)
    check = export(Embedding(), made, tmp_path / "out")
    assert check.ok, check.message
    assert max(check.figures[n] for n in ("text", "denoiser")) < 1e-5
    assert torch.equal(load_file(tmp_path / "out" / FILE)[WORD], made[1].tensors[ROWS])


def changed(file, change):
    content = load_file(file)
    save_file(change(content), file)


def nudged(content):
    return {k: t + 1e-6 for k, t in content.items()}


def turned(content):
    return {k: t.flip(0).contiguous() for k, t in content.items()}


def another_name(content):
    return {f"{k[:-1]}2>": t for k, t in content.items()}


def fewer(content):
    return {k: t[:1] for k, t in content.items()}


@pytest.mark.parametrize("policy", [Token(vectors=2), Pivotal(vectors=2, train=BOTH)])
@pytest.mark.parametrize(
    ("name", "change"),
    [(FILE, nudged), (FILE, turned), (FILE, another_name), (FILE, fewer),
     (A1111, nudged), (A1111, turned), (A1111, fewer)],
)  # fmt: skip
def test_a_changed_file_is_seen(trained, tmp_path, policy, name, change):
    model, artifact, ctx = made = trained(policy)
    exporter = Embedding() if isinstance(policy, Token) else Kohya()
    assert export(exporter, made, tmp_path).ok
    changed(tmp_path / name, change)
    check = exporter.verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert f"differ in {name.split('/')[-1]}" in check.message


@pytest.mark.parametrize("exporter", [Lora(), Kohya()], ids=["lora", "kohya"])
@pytest.mark.parametrize("train", [["unet"], BOTH], ids=["unet", "both"])
def test_an_adapter_file_has_its_word_beside_it(trained, tmp_path, exporter, train):
    made = trained(Pivotal(vectors=2, train=train, method={"kind": "lora", "rank": 4, "alpha": 1}))
    check = export(exporter, made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["denoiser"] <= 1e-5
    assert check.figures["text"] <= 1e-5
    assert check.figures["latents"] <= 1e-4
    assert torch.equal(load_file(tmp_path / "out" / FILE)[WORD], made[1].tensors[ROWS])
    [adapter] = (p for p in (tmp_path / "out").glob("*.safetensors") if p.name != FILE)
    assert not [name for name in load_file(adapter) if "new_rows" in name]


@pytest.mark.parametrize("exporter", [Lora(), Kohya()], ids=["lora", "kohya"])
def test_training_can_begin_with_what_was_written(trained, tmp_path, exporter):
    policy = Pivotal(vectors=2, train=BOTH, method={"kind": "lora", "rank": 4})
    _model, artifact, ctx = made = trained(policy)
    export(exporter, made, tmp_path / "out")
    again = StableDiffusion(source="builtin:tiny").open(ctx)
    begun = policy.at(tmp_path / "out")
    begun.prepare(again, ctx)
    parameters = begun.trainable(again)
    assert {n: digest(p) for n, p in parameters.items()} == {
        n: digest(t) for n, t in artifact.tensors.items()
    }


def test_an_adapter_without_a_word_has_no_word_file(trained, tmp_path):
    assert export(Lora(), trained(Adapter()), tmp_path / "out").ok
    assert not (tmp_path / "out" / FILE).exists()
    assert not (tmp_path / "out" / "embeddings").exists()


@pytest.mark.parametrize(
    ("freezing", "kind"),
    [
        ("token", "embedding"),
        ("pivotal", "lora"),
        ({"kind": "pivotal", "method": "lokr"}, "merged"),
    ],
)
def test_automatic_exports_of_policies_that_learn_a_word(small_job, freezing, kind):
    job = small_job(freezing=freezing, subject=SUBJECT)
    assert [e.kind for e in automatic_exporters(job)] == [kind]
    assert preflight(job) == []


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize(
    ("freezing", "file"),
    [
        pytest.param({"kind": "token", "vectors": 2}, FILE, id="token, diffusers"),
        pytest.param({"kind": "token", "vectors": 2}, A1111, id="token, a1111"),
        pytest.param({"kind": "pivotal", "train": BOTH}, FILE, id="pivotal"),
    ],
)
def test_plain_diffusers_draws_the_picture_that_dbt_sample_draws(
    small_job, tiny_model, freezing, file
):
    result = run(
        small_job(freezing=freezing, subject=SUBJECT, prior="none", optimizer={"lr": 5e-2})
    )
    prompt = f"a photo of {WORD} dog"
    drawn = draw_from_run(result.folder, DrawRequest([prompt], count=1), Quiet())
    [facts] = json.loads((drawn.grid.parent / "prompts.json").read_text())
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(facts["seed"]))
    options = {"num_inference_steps": 2, "height": 32, "width": 32}
    plain = np.asarray(pipe(prompt, latents=start.clone(), **options).images[0], dtype=np.int16)
    if freezing["kind"] == "pivotal":
        pipe.load_lora_weights(result.final, weight_name="pytorch_lora_weights.safetensors")
    pipe.load_textual_inversion(str(result.final / file), token=WORD)
    drew = np.asarray(pipe(prompt, latents=start.clone(), **options).images[0], dtype=np.int16)
    assert np.abs(drew - pixels(drawn.grid.parent / "000.png")).max() <= 1
    assert np.abs(drew - plain).max() > 1


def test_drawing_needs_no_checkpoint(small_job):
    import shutil

    result = run(small_job(freezing="token", subject=SUBJECT, prior="none"))
    request = DrawRequest([f"a photo of {WORD}"], count=1)
    one = draw_from_run(result.folder, request, Quiet())
    shutil.rmtree(result.folder / "checkpoints")
    two = draw_from_run(result.folder, request, Quiet())
    assert (one.source, two.source) == ("step-000004", "final")
    assert np.array_equal(pixels(one.grid), pixels(two.grid))


# --- whole models that know the word


@pytest.mark.parametrize("exporter", [Merged, SingleFile])
@pytest.mark.parametrize("policy", [Token(vectors=2), Pivotal(vectors=2, train=BOTH)])
def test_a_whole_model_knows_the_word(trained, tmp_path, exporter, policy):
    made = trained(policy)
    before = {n: digest(t) for n, t in tensors(made[0]).items()}
    check = export(exporter(), made, tmp_path / "out")
    assert check.ok, check.message
    assert check.figures["text"] <= 1e-5
    assert {n: digest(t) for n, t in tensors(made[0]).items()} == before
    rows = made[1].tensors[ROWS]
    if exporter is Merged:
        table = load_file(tmp_path / "out/text_encoder/model.safetensors")[TABLE]
        assert torch.equal(table[-2:], rows)
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
        assert pipe.tokenizer.tokenize(f"a {WORD} dog")[1] == WORD
    else:
        # The file is as any other of its kind; the word lies beside it, for programs and diffusers.
        file = load_file(tmp_path / "out/small.safetensors")
        base = load_file(made[0].source.weight_files("text_encoder")[0])[TABLE]
        assert torch.equal(file[f"cond_stage_model.transformer.{TABLE}"], base)
        config = json.loads((tmp_path / "out/config/text_encoder/config.json").read_text())
        assert config["vocab_size"] == len(base)
        assert WORD not in (tmp_path / "out/config/tokenizer/tokenizer.json").read_text()
        for name in (FILE, A1111):
            [found] = load_file(tmp_path / "out" / name).values()
            assert torch.equal(found, rows)


def swap_rows(content):
    table = content[TABLE].clone()
    table[-2:] = table[-2:].flip(0)
    return content | {TABLE: table}


@pytest.mark.parametrize(
    ("exporter", "name", "change"),
    [
        (Merged, "text_encoder/model.safetensors", swap_rows),
        (SingleFile, A1111, turned),
        (SingleFile, FILE, nudged),
    ],
)
def test_another_word_in_a_whole_model_is_seen(trained, tmp_path, exporter, name, change):
    model, artifact, ctx = made = trained(Token(vectors=2))
    assert export(exporter(), made, tmp_path).ok
    changed(tmp_path / name, change)
    check = exporter().verify(artifact, model, tmp_path, ctx)
    assert not check.ok
    assert "rows" in check.message
