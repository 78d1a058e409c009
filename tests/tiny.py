"""Tiny checkpoints in the hub's own layout: real classes, random weights, a few hundred kilobytes.

They are big enough to have every part that a real one has (cross-attention, skip connections, quant
convolutions, a text encoder with a padded and truncating tokenizer) and small enough to run in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# Tensors this small gain nothing from threads, and lose much to them on a busy machine.
torch.set_num_threads(1)

WORDS = ("a", "the", "of", "on", "in", "red", "blue", "green", "cat", "dog", "sunset", "rocket", "left")


def make_tokenizer(folder: Path, max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is letters and `WORDS`, cutting prompts at `max_length` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts[:2] = [parts[0] + parts[1]]
            if merge not in merges:
                merges.append(merge)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=max_length,
        pad_token="<|endoftext|>",
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"prediction_type": "v_prediction", "use_linear_projection": True},
    "sd-turbo": {"timestep_spacing": "trailing", "use_linear_projection": True},
}
"""What differs between Stable Diffusion 1.x, 2.x and SD-Turbo, as `make_pipeline` takes it."""


def make_pipeline(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    use_linear_projection: bool = False,
    seed: int = 0,
    vae_blocks: int = 2,
    **scheduler: Any,
) -> Path:
    """Write a tiny Stable Diffusion checkpoint into `folder` and return it.

    Latents are 8×8 with 4 channels for a 16 px picture (factor 2, twice that with each further block of the
    VAE); the size of one forward row is trivial.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=use_linear_projection,
    )
    vae = AutoencoderKL(
        block_out_channels=(8,) * vae_blocks,
        down_block_types=("DownEncoderBlock2D",) * vae_blocks,
        up_block_types=("UpDecoderBlock2D",) * vae_blocks,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    noise_scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        **scheduler,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise_scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
