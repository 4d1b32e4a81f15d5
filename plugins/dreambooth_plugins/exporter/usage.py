"""How other tools open what was written, in Markdown: the exporters' part of a model card.

The Python in it runs as it stands, in the folder of the export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.helpers.naming import base_name, hub_id
from dreambooth.helpers.text import flat
from dreambooth_plugins.formats.embedding import A1111_FOLDER, EMBEDDING_FILE, loading_code
from dreambooth_plugins.formats.lora.diffusers import LORA_FILE
from dreambooth_plugins.formats.lora.peft import CONFIG
from dreambooth_plugins.formats.model_spec import has_zero_terminal_snr

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo

OTHER_SIZES = (
    "AUTOMATIC1111, Forge and ComfyUI know the sizes of published models alone; this base has "
    "others, so the file is of use in diffusers."
)


ZERO_SNR = "It was trained with zero terminal SNR."


def _schedule(job: Job, info: ModelInfo) -> str:
    """Return what other programs must be told of the noise schedule; empty for most models."""
    if info.prediction != "v_prediction":
        return ""
    zero = has_zero_terminal_snr(job, info)
    lines = ["", f"The model predicts v.{f' {ZERO_SNR}' * zero} Elsewhere:", ""]
    node = "*ModelSamplingDiscrete* node, `v_prediction`"
    if zero:
        lines += [
            "- diffusers: a scheduler with `rescale_betas_zero_snr=True` and "
            "`timestep_spacing='trailing'`, drawn with `guidance_rescale=0.7`.",
            "- AUTOMATIC1111, Forge: the setting *Noise schedule for sampling*, `Zero Terminal "
            "SNR`.",
            f"- ComfyUI: a {node} and `zsnr` on.",
        ]
    else:
        lines += [f"- ComfyUI: a {node}, where the base needs one."]
    return "\n".join([*lines, ""])


def folder_usage(job: Job, info: ModelInfo) -> str:
    """Return how a diffusers folder is opened."""
    text = _diffusers(job, info, [f"pipe = {info.pipeline}.from_pretrained('.'{_absent(info)})"])
    rescaled = "The scheduler in the folder is set to it: draw with `guidance_rescale=0.7`."
    return f"{text}\n{ZERO_SNR} {rescaled}\n" if has_zero_terminal_snr(job, info) else text


def lora_usage(job: Job, info: ModelInfo, files: Sequence[str], weights: str) -> str:
    """Return how an adapter file is opened; `weights` is its name."""
    lines = [*_base(job, info), f"pipe.load_lora_weights('.', weight_name={weights!r})"]
    text = _diffusers(job, info, [*lines, *_word(job, info, files)]) + _schedule(job, info)
    if weights == LORA_FILE:
        return f"{text}\nFor AUTOMATIC1111, Forge and ComfyUI export it as `kohya`.\n"
    if "kohya" not in info.names:
        return f"{text}\n{OTHER_SIZES}\n"
    return f"{text}{_word_steps(files)}\n{_lora_steps(job, files, weights)}"


def lycoris_usage(job: Job, info: ModelInfo, files: Sequence[str], weights: str) -> str:
    """Return how a LoHa's or LoKr's file is opened; `weights` is its name."""
    text = "diffusers reads no LoHa and no LoKr: export it as `merged` for its pipelines.\n"
    text += _schedule(job, info)
    if "kohya" not in info.names:
        return f"{text}\n{OTHER_SIZES.replace(', so the file is of use in diffusers', '')}\n"
    return f"{text}{_word_steps(files)}\n{_lora_steps(job, files, weights)}"


def comfyui_usage(job: Job, info: ModelInfo, files: Sequence[str], weights: str) -> str:
    """Return how a file with ComfyUI's names is opened."""
    text = "diffusers reads `lora`, not this file.\n"
    if not info.names.keys() & {"kohya", "modelspec"}:
        return f"{text}\n{OTHER_SIZES.replace(', so the file is of use in diffusers', '')}\n"
    return f"{text}\n{_lora_steps(job, files, weights).splitlines(keepends=True)[-1]}"


def peft_usage(job: Job, info: ModelInfo, files: Sequence[str]) -> str:
    """Return how PEFT's folders are opened."""
    parts = [file.removesuffix(f"/{CONFIG}") for file in files if file.endswith(f"/{CONFIG}")]
    opened = [f"PeftModel.from_pretrained(pipe.{part}, {part!r})" for part in parts]
    lines = [*_base(job, info), *opened, *_word(job, info, files)]
    text = _diffusers(job, info, ["from peft import PeftModel", *lines]) + _schedule(job, info)
    if {*parts} & {*info.part_names("text_encoders")}:
        text += (
            "\nWith transformers before 5.6 a text encoder's folder is opened with "
            "`key_mapping={'^': 'text_model.'}`.\n"
        )
    return f"{text}\nPrograms that know no PEFT open what is exported as `merged`.\n"


def _lora_steps(job: Job, files: Sequence[str], weights: str) -> str:
    name = weights.removesuffix(".safetensors")
    steps = [
        f"AUTOMATIC1111, Forge: put `{weights}` into `models/Lora` and write "
        f"`{_trigger(job, files)}, <lora:{name}:1>` in the prompt.",
        f"ComfyUI: put `{weights}` into `models/loras` and add a *Load LoRA* node, strength 1 for "
        f"model and CLIP; the prompt says `{_trigger(job, files, comfy=True)}`.",
    ]
    return _list(steps)


def single_file_usage(job: Job, info: ModelInfo, files: Sequence[str]) -> str:
    """Return how a file in the original layout is opened."""
    own = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    [name] = [file for file in own if file != EMBEDDING_FILE]
    opening = [f"pipe = {info.pipeline}.from_single_file({name!r}, config='config')"]
    text = _diffusers(job, info, [*opening, *_word(job, info, files)]) + _schedule(job, info)
    if "kohya" not in info.names:
        return f"{text}\n{OTHER_SIZES}\n"
    steps = [
        f"AUTOMATIC1111, Forge: put `{name}` into `models/Stable-diffusion`.",
        f"ComfyUI: put `{name}` into `models/checkpoints`, and open it with *Load Checkpoint*.",
        f"The prompt says `{_trigger(job, files)}`.",
    ]
    return f"{text}{_word_steps(files)}\n{_list(steps)}"


def embedding_usage(job: Job, info: ModelInfo, files: Sequence[str]) -> str:
    """Return how the file of a learned word is opened."""
    text = _diffusers(job, info, [*_base(job, info), *_word(job, info, files)])
    if "kohya" not in info.names:
        return f"{text}\n{OTHER_SIZES}\n"
    return f"{text}{_word_steps(files)}"


def _word(job: Job, info: ModelInfo, files: Sequence[str]) -> list[str]:
    if EMBEDDING_FILE not in files:
        return []
    return loading_code(_plain(job.subject.identifier), info)


def _word_file(files: Sequence[str]) -> str:
    return next((f for f in files if f.startswith(f"{A1111_FOLDER}/")), "")


def _word_name(file: str) -> str:
    return file.removeprefix(f"{A1111_FOLDER}/").removesuffix(".safetensors")


def _word_steps(files: Sequence[str]) -> str:
    if not (file := _word_file(files)):
        return ""
    name = _word_name(file)
    steps = [
        f"AUTOMATIC1111, Forge: put `{file}` into `{A1111_FOLDER}`; there the word is the file's "
        f"name, `{name}`.",
        f"ComfyUI: put `{file}` into `models/embeddings` and write `embedding:{name}`.",
    ]
    return f"\n{_list(steps)}"


def _trigger(job: Job, files: Sequence[str], *, comfy: bool = False) -> str:
    word = _plain(job.subject.identifier)
    if file := _word_file(files):
        name = _word_name(file)
        word = f"embedding:{name}" if comfy else name
    return f"{word} {_plain(job.subject.class_noun)}"


def _base(job: Job, info: ModelInfo) -> list[str]:
    source = base_name(job)
    if source.startswith("builtin:"):
        return [
            "from dreambooth_plugins.model.builtin import base_folder  # dreambooth-trainer",
            "",
            f"base = base_folder({source.removeprefix('builtin:')!r}, build=True)",
            f"pipe = {info.pipeline}.from_pretrained(base)",
        ]
    named = hub_id(job) or f"path/to/{source}"
    call = "from_single_file" if source.endswith(".safetensors") else "from_pretrained"
    return [f"pipe = {info.pipeline}.{call}({named!r}{_absent(info)})"]


def _absent(info: ModelInfo) -> str:
    return "".join(f", {name}=None" for name in info.absent)


def _diffusers(job: Job, info: ModelInfo, opening: Iterable[str]) -> str:
    prompt = job.subject.fill("a photo of {identifier} {class_noun}")
    lines = [
        f"from diffusers import {info.pipeline}",
        *opening,
        f"pipe({prompt!r}).images[0].save('picture.png')",
    ]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _list(steps: Iterable[str]) -> str:
    return "".join(f"- {step}\n" for step in steps)


def _plain(text: str) -> str:
    return flat(text).replace("`", "'")
