"""Configurations as they are published, with what they leave to the libraries, are described."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
import transformers

from dreambooth_plugins.model import Auto

CLIP_L = {"hidden_size": 768, "num_attention_heads": 12, "projection_dim": 768, "vocab_size": 49408}
CLIP_G = {**CLIP_L, "hidden_size": 1280, "num_attention_heads": 20, "projection_dim": 1280}
KL = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "norm_num_groups": 32}
KL |= {f"{way}_block_types": [f"{kind}Block2D"] * 4 for way, kind in
       (("down", "DownEncoder"), ("up", "UpDecoder"))}  # fmt: skip
QWEN3 = {"hidden_size": 2560, "num_hidden_layers": 36}
PUBLISHED = {
    "flux": {
        "transformer": {
            "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64,
            "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
            "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": {"d_model": 4096},
        "vae": KL,
    },
    "sd3": {
        "transformer": {
            "attention_head_dim": 64, "caption_projection_dim": 2432, "in_channels": 16,
            "joint_attention_dim": 4096, "num_attention_heads": 38, "num_layers": 38,
            "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192, "qk_norm": "rms_norm", "sample_size": 128,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": {"d_model": 4096},
        "vae": KL,
    },
    "z_image": {
        "transformer": {
            "all_f_patch_size": [1], "all_patch_size": [2], "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840, "in_channels": 16,
            "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "n_refiner_layers": 2,
        },
        "text_encoder": QWEN3,
        "vae": KL,
    },
    "flux2_klein": {
        "transformer": {
            "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32], "guidance_embeds": False,
            "in_channels": 128, "joint_attention_dim": 7680, "mlp_ratio": 3.0,
            "num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20,
        },
        "text_encoder": QWEN3,
        "vae": {**KL, "latent_channels": 32},
    },
    "qwen_image": {
        "transformer": {
            "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "guidance_embeds": False,
            "in_channels": 64, "joint_attention_dim": 3584, "num_attention_heads": 24,
            "num_layers": 60, "out_channels": 16, "patch_size": 2,
        },
        "text_encoder": {"hidden_size": 3584},
        "vae": {
            "base_dim": 96, "dim_mult": [1, 2, 4, 4], "z_dim": 16,
            "temperal_downsample": [False, True, True],
        },
    },
}  # fmt: skip
"""The keys published configurations have; what they leave out is diffusers' default."""
MULTIPLES = {"flux": 16, "sd3": 16, "z_image": 16, "flux2_klein": 16, "qwen_image": 16}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_described(tmp_path, name):
    where = tmp_path / "model"
    shutil.copytree(tiny.folder(name), where)
    for part, config in PUBLISHED[name].items():
        file = where / part / "config.json"
        classes = {"_class_name": json.loads(file.read_text()).get("_class_name")}
        file.write_text(json.dumps({**config, **classes}))
    info = Auto(source=str(where)).describe()
    assert (info.resolution, info.latent.multiple) == (1024, MULTIPLES[name])
    assert info.latent.factor * info.latent.patch == 16
    assert {"kohya", "modelspec"} <= info.names.keys()
    assert not info.distilled


@pytest.mark.parametrize("cls", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_a_language_model_may_be_saved_as_either_class(tmp_path, ctx, cls):
    where = tmp_path / "model"
    shutil.copytree(tiny.folder("z_image"), where)
    whole = getattr(transformers, cls).from_pretrained(where / "text_encoder")
    whole.save_pretrained(where / "text_encoder")
    index = where / "model_index.json"
    index.write_text(index.read_text().replace("Qwen3Model", cls))
    found = Auto(source=str(where)).open(ctx).encode_prompts(["a dog"])
    plain = Auto(source=str(tiny.folder("z_image"))).open(ctx).encode_prompts(["a dog"])
    torch.testing.assert_close(found[0].tensors["embeds"], plain[0].tensors["embeds"])


@pytest.mark.parametrize("name", ["z_image", "flux2_klein", "qwen_image"])
def test_an_identifier_is_chosen_from_a_language_models_words(small_job, name):
    from dreambooth.jobs.identifiers import judge, settled

    source = str(tiny.folder(name))
    job = small_job(
        model={"kind": name, "source": source},
        subject={"identifier": "auto", "class_noun": "dog"},
        sampler={"kind": "auto", "steps": 2},
        freezing={"kind": "adapter", "train": ["denoiser"]},
    )
    assert len(settled(job).subject.identifier) == 1, "the tiny one has letters alone"
    vocabulary = job.model.vocabulary()
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(f"{source}/tokenizer")
    for text in ("dog", "two words", "naïve"):
        theirs = [token for token in tokenizer.tokenize(f" {text}") if token != "Ġ"]
        assert len(vocabulary.split(text)) == len(theirs)
    assert vocabulary.has("<|im_start|>")
    assert judge("zwx", vocabulary) == []


def test_words_of_a_vocabulary_are_those_behind_a_space():
    from tokenizers import Tokenizer, models, pre_tokenizers

    from dreambooth_plugins.model.flow.vocabulary import TokenizerVocabulary

    pairs = [("d", "o"), ("do", "g"), ("Ġ", "dog")]
    tokens = ["Ġ", "d", "o", "g", "do", "dog", "Ġdog"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = TokenizerVocabulary(tokenizer)
    assert vocabulary.split("dog dog") == ["dog", "dog"]
    assert vocabulary.words() == {"dog": 1.0}
    assert vocabulary.has("dog")
    assert not vocabulary.has("cat")
