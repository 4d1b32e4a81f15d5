"""What Black Forest Labs and Stability call the modules of their transformers."""

from __future__ import annotations


def _qkv(attention: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{attention}.{name}" for name in names)


_OWN, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
_D, _S = "transformer_blocks.{i}", "single_transformer_blocks.{i}"

FLUX: dict[str, str | tuple[str, ...]] = {
    "double_blocks.{i}.img_attn.qkv": _qkv(f"{_D}.attn", _OWN),
    "double_blocks.{i}.img_attn.proj": f"{_D}.attn.to_out.0",
    "double_blocks.{i}.img_mlp.0": f"{_D}.ff.net.0.proj",
    "double_blocks.{i}.img_mlp.2": f"{_D}.ff.net.2",
    "double_blocks.{i}.img_mod.lin": f"{_D}.norm1.linear",
    "double_blocks.{i}.txt_attn.qkv": _qkv(f"{_D}.attn", _ADDED),
    "double_blocks.{i}.txt_attn.proj": f"{_D}.attn.to_add_out",
    "double_blocks.{i}.txt_mlp.0": f"{_D}.ff_context.net.0.proj",
    "double_blocks.{i}.txt_mlp.2": f"{_D}.ff_context.net.2",
    "double_blocks.{i}.txt_mod.lin": f"{_D}.norm1_context.linear",
    "single_blocks.{i}.linear1": (*_qkv(f"{_S}.attn", _OWN), f"{_S}.proj_mlp"),
    "single_blocks.{i}.linear2": f"{_S}.proj_out",
    "single_blocks.{i}.modulation.lin": f"{_S}.norm.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
"""FLUX.1, whose last modulation has scale and shift the other way round."""
FLUX_SWAPPED = ("final_layer.adaLN_modulation.1",)

SD3: dict[str, str | tuple[str, ...]] = {
    "joint_blocks.{i}.x_block.attn.qkv": _qkv(f"{_D}.attn", _OWN),
    "joint_blocks.{i}.x_block.attn.proj": f"{_D}.attn.to_out.0",
    "joint_blocks.{i}.x_block.attn2.qkv": _qkv(f"{_D}.attn2", _OWN),
    "joint_blocks.{i}.x_block.attn2.proj": f"{_D}.attn2.to_out.0",
    "joint_blocks.{i}.x_block.mlp.fc1": f"{_D}.ff.net.0.proj",
    "joint_blocks.{i}.x_block.mlp.fc2": f"{_D}.ff.net.2",
    "joint_blocks.{i}.x_block.adaLN_modulation.1": f"{_D}.norm1.linear",
    "joint_blocks.{i}.context_block.attn.qkv": _qkv(f"{_D}.attn", _ADDED),
    "joint_blocks.{i}.context_block.attn.proj": f"{_D}.attn.to_add_out",
    "joint_blocks.{i}.context_block.mlp.fc1": f"{_D}.ff_context.net.0.proj",
    "joint_blocks.{i}.context_block.mlp.fc2": f"{_D}.ff_context.net.2",
    "joint_blocks.{i}.context_block.adaLN_modulation.1": f"{_D}.norm1_context.linear",
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SD3_SWAPPED = ("final_layer.adaLN_modulation.1",)
"""Stable Diffusion 3; the text side of its last block is modulated like the final layer."""

FLUX2: dict[str, str | tuple[str, ...]] = {
    "double_blocks.{i}.img_attn.qkv": _qkv(f"{_D}.attn", _OWN),
    "double_blocks.{i}.img_attn.proj": f"{_D}.attn.to_out.0",
    "double_blocks.{i}.img_mlp.0": f"{_D}.ff.linear_in",
    "double_blocks.{i}.img_mlp.2": f"{_D}.ff.linear_out",
    "double_blocks.{i}.txt_attn.qkv": _qkv(f"{_D}.attn", _ADDED),
    "double_blocks.{i}.txt_attn.proj": f"{_D}.attn.to_add_out",
    "double_blocks.{i}.txt_mlp.0": f"{_D}.ff_context.linear_in",
    "double_blocks.{i}.txt_mlp.2": f"{_D}.ff_context.linear_out",
    "single_blocks.{i}.linear1": f"{_S}.attn.to_qkv_mlp_proj",
    "single_blocks.{i}.linear2": f"{_S}.attn.to_out",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
"""FLUX.2, whose blocks share their modulations."""
FLUX2_SWAPPED = ("final_layer.adaLN_modulation.1",)
