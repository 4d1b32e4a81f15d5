"""The model card beside every export: what it says, and that its instructions work."""

from __future__ import annotations

import ast
import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors import safe_open

from dreambooth.engine.loop import run
from dreambooth.helpers.naming import base_name, hub_id, last_part
from dreambooth_plugins.exporter import Diffusers, Embedding, Kohya, SingleFile

SUBJECT = {"identifier": "<x>", "class_noun": "dog"}
SAMPLES = {"every": 4, "per_prompt": 1, "prompts": ["{identifier} on the moon", "a | `dog`"]}


def card_of(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return YAML(typ="safe").load(front), body


def test_a_card_says_what_was_made_and_how(small_job, tmp_path):
    job = small_job(
        samples=SAMPLES, freezing={"kind": "adapter", "method": {"kind": "lora", "rank": 3}},
        exports=["lora", "kohya"], data={"prompt": "a photo of {identifier} {class_noun}"},
    )  # fmt: skip
    result = run(job)
    front, body = card_of(result.final)
    assert front["library_name"] == "diffusers"
    assert front["instance_prompt"] == "a photo of ohwx dog"
    assert {"text-to-image", "dreambooth", "lora"} <= set(front["tags"])
    assert front["widget"] == [{"text": "ohwx on the moon", "output": {"url": "samples.png"}}]
    assert "base_model" not in front  # no hub id
    for text in (
        "| base model | `builtin:tiny` |",
        "| pictures | 3, trained at 32 x 32 |",
        "| steps | 4 |",
        "| class prompt | `a photo of a dog` |",
        '"rank": 3',
        "- `ohwx on the moon`",
        "- `a | 'dog'`",
        "| train/loss | ",
        "adapters equal",
        "pipe.load_lora_weights('.', weight_name='pytorch_lora_weights.safetensors')",
    ):
        assert text in body
    with Image.open(result.final / "samples.png") as picture:
        assert picture.size == (32, 64)
        assert not picture.text
    _, kohya = card_of(result.folder / "exports/kohya")
    assert "small.safetensors" in kohya
    assert "dreambooth-trainer" in kohya


def test_a_card_has_no_path_of_this_machine_and_no_secret(
    small_job, tmp_path, monkeypatch, tiny_model
):
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-enough")
    job = small_job(
        model={"source": str(tiny_model)},
        samples={"every": 4, "per_prompt": 1, "prompts": ["s3cr3t-enough dog"]},
        prior={"kind": "none"},
        exports=["diffusers", "single_file"],
    )
    result = run(job)
    for folder in (result.final, result.folder / "exports/single_file"):
        text = (folder / "README.md").read_text()
        assert "s3cr3t-enough" not in text
        assert "<MY_API_KEY>" in text
        assert str(tmp_path) not in text
        assert str(tiny_model) not in text
        assert not re.search(r"[\s`'\"(](/[\w.-]+){2,}", text)
        assert f"| base model | `{tiny_model.name}` |" in text


FORMATS = {
    "diffusers": "components",
    "single_file": "components",
    "lora": {"kind": "pivotal", "train": ["unet"]},
    "kohya": {"kind": "pivotal", "train": ["unet"]},
    "peft": {"kind": "pivotal", "method": {"kind": "oft", "block_size": 8}},
    "merged": {"kind": "adapter"},
    "embedding": {"kind": "token"},
}


@pytest.mark.parametrize("format_", FORMATS)
def test_the_instructions_for_diffusers_work_as_they_stand(small_job, monkeypatch, format_):
    result = run(
        small_job(
            freezing=FORMATS[format_],
            subject=SUBJECT,
            prior="none",
            exports=[format_],
            optimizer={"lr": 1e-3},
        )
    )
    _, body = card_of(result.final)
    [code] = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    monkeypatch.chdir(result.final)
    exec(compile(code, "card", "exec"), {})
    with Image.open(result.final / "picture.png") as picture:
        assert picture.size == (32, 32)


SD1, OTHER = (
    SimpleNamespace(
        family=family,
        names=names,
        pipeline="StableDiffusionPipeline",
        prediction="epsilon",
        schedule={},
        learns_words=("text_encoder",),
        absent=(),
    )
    for family, names in (("stable-diffusion-1", {"kohya": "sd_v1"}), ("other", {}))
)
WORD_FILES = ["learned_embeds.safetensors", "embeddings/x.safetensors"]


@pytest.mark.parametrize(
    ("exporter", "files", "said"),
    [
        (Kohya(), ["small.safetensors"],
         ["`models/Lora`", "`ohwx dog, <lora:small:1>`", "`models/loras`"]),
        (Kohya(), ["small.safetensors", *WORD_FILES],
         ["`x dog, <lora:small:1>`", "`embedding:x dog`", "`models/embeddings`"]),
        (SingleFile(), ["small.safetensors", "config/model_index.json"],
         ["`models/Stable-diffusion`", "`models/checkpoints`", "`ohwx dog`"]),
        (Embedding(), WORD_FILES, ["`embeddings/x.safetensors`", "`x`", "`embedding:x`"]),
    ],
)  # fmt: skip
def test_other_programs_are_told_of_where_they_know_the_base(small_job, exporter, files, said):
    text = exporter.usage(small_job(), SD1, files)
    for words in said:
        assert words in text
    assert "has others" not in text
    other = exporter.usage(small_job(), OTHER, files)
    assert "this base has others, so the file is of use in diffusers" in other
    assert "models/" not in other


def test_an_identifier_beyond_ascii_stays_python(small_job):
    job = small_job(subject={"identifier": "it's-\U0001f436", "class_noun": "dog"})
    code = Diffusers().usage(job, SD1, []).removeprefix("```python\n").split("```")[0]
    [*_, call] = ast.parse(code).body
    assert "a photo of it's-\U0001f436 dog" in [
        node.value for node in ast.walk(call) if isinstance(node, ast.Constant)
    ]


def test_equal_runs_give_equal_cards(small_job):
    one, two = (
        (run(small_job(output=small_job().output / n)).final / "README.md").read_bytes()
        for n in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    ("source", "name", "hub"),
    [
        ("builtin:emoji-64", "builtin:emoji-64", None),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5",) * 2
        + ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
        ("/home/me/models/sd15", "sd15", None),
        (r"C:\models\sd15.safetensors", "sd15.safetensors", None),
    ],
)
def test_what_a_base_is_called(small_job, source, name, hub):
    job = small_job()
    job = job.model_copy(update={"model": job.model.model_copy(update={"source": source})})
    assert (base_name(job), hub_id(job)) == (name, hub)


def test_a_text_that_is_no_path_stays():
    assert last_part("a photo of a dog/cat") == "a photo of a dog/cat"


def test_captions_are_told_where_they_were_trained(small_job):
    job = small_job(freezing="adapter", exports=["kohya"])
    text = card_of(run(job).final)[1]
    assert "| captions | 3 different ones: `picture 0 of ohwx dog`, `picture 1 of" in text
    plain = small_job(
        name="plain", freezing="adapter", data={"captions": "none"}, exports=["kohya"]
    )
    result = run(plain)
    assert "| prompt | `a photo of ohwx dog` |" in card_of(result.final)[1]
    with safe_open(result.final / "plain.safetensors", "pt") as file:
        tags = json.loads(file.metadata()["ss_tag_frequency"])
    assert tags == {"1_ohwx dog": {"a photo of ohwx dog": 3}}
    with safe_open(job.folder / "final/small.safetensors", "pt") as file:
        tags = json.loads(file.metadata()["ss_tag_frequency"])
    assert tags == {"1_ohwx dog": {f"picture {i} of ohwx dog": 1 for i in range(3)}}


@pytest.mark.parametrize("format_", ["lora", "kohya", "peft", "merged", "single_file"])
def test_zero_terminal_snr_is_told_to_other_programs(small_job, format_):
    model = {"kind": "stable_diffusion", "source": "builtin:tiny", "prediction": "v_prediction"}
    job = small_job(
        model=model, freezing="adapter", exports=[format_], prior="none",
        scheduler={"kind": "ddpm", "zero_terminal_snr": True}, train={"steps": 1},
    )  # fmt: skip
    result = run(job)
    text = card_of(result.final)[1]
    assert "zero terminal SNR" in text
    assert "guidance_rescale=0.7" in text
    if format_ != "merged":
        assert "`zsnr` on" in text
        assert "Zero Terminal SNR" in text
    plain = small_job(name="plain", model=model, freezing="adapter", exports=[format_],
                      prior="none", train={"steps": 1})  # fmt: skip
    assert "zero terminal SNR" not in card_of(run(plain).final)[1]
