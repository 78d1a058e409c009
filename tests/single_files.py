"""One `.safetensors` file out of a checkpoint in the diffusers layout, with the names of the original code.

The way back from what diffusers does when it reads such files; written out so that a test needs no real one.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(checkpoint: Path, file: Path, *, open_clip: bool) -> Path:
    """Write all weights of `checkpoint` into `file`; SD 2.x has its text encoder in OpenCLIP's names."""
    unet = load_file(checkpoint / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(checkpoint / "text_encoder/model.safetensors")
    tensors = {f"model.diffusion_model.{_unet_name(name, unet)}": value for name, value in unet.items()}
    for name, value in vae.items():
        original = _vae_name(name)
        is_matrix = ".attn_1." in original and original.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{original}"] = value[:, :, None, None] if is_matrix else value
    text = {name.removeprefix("text_model."): value for name, value in text.items()}
    tensors.update(_open_clip(text) if open_clip else _clip(text))
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


def _unet_name(name: str, unet: Tensors, layers_per_block: int = 1) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}.{_inner(found[1], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name)
    assert found, name
    side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers_per_block + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        last = block * (layers_per_block + 1) + layers_per_block
        attends = any(other.startswith(f"up_blocks.{block}.attentions") for other in unet)
        return f"output_blocks.{last}.{2 if attends else 1}.{rest}"
    place = 1 if kind == "attentions" else 0
    first = 1 if side == "down" else 0
    number = block * (layers_per_block + 1) + layer + first
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, leaf = rest.rsplit(".", 1)
    return f"{_UNET_RESNET[part]}.{leaf}"


def _vae_name(name: str, blocks: int = 2) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        start, part, leaf = re.split(r"\.(group_norm|to_[qkv]|to_out\.0)\.", name)
        return f"{start.replace('mid_block.attentions.0', 'mid.attn_1')}.{_VAE_ATTENTION[part]}.{leaf}"
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)


def _clip(text: Tensors) -> Tensors:
    return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}


def _open_clip(text: Tensors) -> Tensors:
    names = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    made: Tensors = {}
    for name, value in text.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
        if layer is None:
            made[names[name]] = value
            continue
        block, rest = f"transformer.resblocks.{layer[1]}", layer[2]
        if found := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", rest):
            stem = f"encoder.layers.{layer[1]}.self_attn"
            joined = torch.cat([text[f"{stem}.{part}_proj.{found[1]}"] for part in "qkv"])
            made[f"{block}.attn.in_proj_{found[1]}"] = joined
        elif not re.match(r"self_attn\.[kv]_proj", rest):
            rest = rest.replace("layer_norm", "ln_").replace("self_attn", "attn")
            made[f"{block}.{rest.replace('fc1', 'c_fc').replace('fc2', 'c_proj')}"] = value
    return {f"cond_stage_model.model.{name}": value for name, value in made.items()}
