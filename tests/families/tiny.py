"""Tiny models of the flow-matching families, made in code: weights, tokenizers and all.

Two blocks of each kind; weights are a function of their names, large enough that every input moves
the answer.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from dreambooth_plugins.model.folder.clip_vocabulary import byte_alphabet, clip_vocabulary

MERGES, CLIP_TOKENS = 300, 814


def filled(module, name):
    """Give a module weights of variance 1 / fan-in, norms about 1, biases small."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * p[0].numel() ** -0.5)
            else:
                p.copy_(0.1 * noise + float("norm" in key and key.endswith("weight")))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if key.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


def clip_tokenizer(length=16):
    vocabulary, merges = clip_vocabulary(MERGES)
    assert len(vocabulary) == CLIP_TOKENS
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def t5_tokenizer():
    pieces = ["▁a", "▁dog", "▁photo", "▁of", "▁the", "▁picture", "▁"]
    letters = [chr(c) for c in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*special, *((p, -2.0) for p in pieces), *((c, -5.0) for c in letters)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def clip(width, name, projected=False):
    config = CLIPTextConfig(
        vocab_size=CLIP_TOKENS, hidden_size=width, intermediate_size=64, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
        bos_token_id=CLIP_TOKENS - 2, eos_token_id=CLIP_TOKENS - 1, pad_token_id=CLIP_TOKENS - 1,
    )  # fmt: skip
    return filled((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), name)


def t5(width=32):
    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.1,
    )  # fmt: skip
    return filled(T5EncoderModel(config), "t5")


def kl(channels, scale, shift):
    vae = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
        sample_size=32,
    )  # fmt: skip
    filled(vae, "vae")
    with torch.no_grad():  # log-variances: latents are means with a little noise
        vae.encoder.conv_out.bias[channels:] = -4.0
        vae.encoder.conv_out.weight[channels:] *= 0.1
    return vae


def flux(dest, *, guidance=True):
    """FLUX.1: dev, or schnell."""
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    schedule = (
        {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
        if guidance
        else {"shift": 1.0}
    )
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**schedule), kl(4, 0.3611, 0.1159), clip(32, "clip"),
        clip_tokenizer(), t5(), t5_tokenizer(), filled(net, "flux"),
    ).save_pretrained(dest)  # fmt: skip


def sd3(dest, *, with_t5=True):
    """Stable Diffusion 3.5, whose last block has no text side; the first has a second attention."""
    net = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=72, caption_projection_dim=32,
        pooled_projection_dim=64, out_channels=4, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        filled(net, "sd3"), FlowMatchEulerDiscreteScheduler(shift=3.0), kl(4, 1.5305, 0.0609),
        clip(32, "clip", True), clip_tokenizer(), clip(32, "clip2", True), clip_tokenizer(),
        t5(72) if with_t5 else None, t5_tokenizer() if with_t5 else None,
    ).save_pretrained(dest)  # fmt: skip


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def qwen_tokenizer():
    """Bytes alone, and Qwen's special tokens."""
    letters = byte_alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocabulary = {token: i for i, token in enumerate([*letters, *special])}
    tokenizer = Qwen2TokenizerFast(
        vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=4096,
        extra_special_tokens=special[1:],
    )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(cls, layers=3):
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()), hidden_size=16, intermediate_size=32, head_dim=8,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    return filled(cls(config), "qwen3")


def z_image(dest, *, shift=6.0):
    """Z-Image; Turbo with a shift of 3."""
    net = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=2, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[512, 32, 32],
    )  # fmt: skip
    ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=shift), kl(4, 0.3611, 0.1159), qwen3(Qwen3Model),
        qwen_tokenizer(), filled(net, "z_image"),
    ).save_pretrained(dest)  # fmt: skip


def flux2_klein(dest, *, distilled=False):
    """FLUX.2 klein base; or distilled. Its language model has the layers the texts come from."""
    net = Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        sample_size=32,
    )  # fmt: skip
    schedule = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(**schedule), filled(vae, "vae"),
        qwen3(Qwen3ForCausalLM, 28), qwen_tokenizer(), filled(net, "flux2"), distilled,
    ).save_pretrained(dest)  # fmt: skip


def qwen_image(dest):
    """Qwen-Image."""
    net = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=3, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.7, 0.1, 0.4, -0.2], latents_std=[1.4, 2.3, 0.8, 1.1],
    )  # fmt: skip
    tokenizer = qwen_tokenizer()
    special = {
        f"{name}_token_id": 260
        for name in ("image", "video", "vision_start", "vision_end", "vision")
    }
    text = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6,
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16,
        },
        **special,
    )  # fmt: skip
    schedule = {
        "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
        "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
    }  # fmt: skip
    QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(**schedule), filled(vae, "vae"),
        filled(Qwen2_5_VLForConditionalGeneration(text), "qwen2.5"), tokenizer,
        filled(net, "qwen_image"),
    ).save_pretrained(dest)  # fmt: skip


MODELS = {
    "flux": flux,
    "sd3": sd3,
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "qwen_image": qwen_image,
}


@cache
def folder(name, **options):
    """Return the folder of a tiny model, made once; do not write into it."""
    where = Path(tempfile.mkdtemp(prefix=f"tiny-{name}-"))
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    MODELS[name](where, **options)
    return where
