"""Checkpoints of the true size of Stable Diffusion 1.x with random weights: for measuring, not for pictures.

Importing this imports no torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

MODELS = ("aesthetic", "alignment", "compressibility", "incompressibility")
"""Names of the four; they share text encoder and VAE, as the DDPO models do."""

_CATALOG = """
default = "model"

[models.model]
label = "True size"
best_for = "Measuring."
description = "Random weights of the size of Stable Diffusion 1.x."
source = "{source}"
family = "stable_diffusion"
licence = "none"
examples = ["a sunset"]

[models.model.defaults]
steps = 20
guidance_scale = 5.0
eta = 0.0
width = 512
height = 512
noise_scheduler = "ddim"

[models.model.limits]
sizes = [[512, 512]]
size_multiple = 8
min_size = 256
max_size = 768
max_pixels = 589824
"""


def write_true_size_catalog(folder: Path) -> Path:
    """Write one checkpoint (2.1 GB) and a catalogue with it into `folder`; returns the TOML file."""
    checkpoint = write_checkpoint(folder, MODELS[0], 0)
    file = folder / "true_size.toml"
    file.write_text(_CATALOG.format(source=checkpoint))
    return file


def write_checkpoint(folder: Path, name: str, seed: int) -> Path:
    """Write one checkpoint; all but the first take text encoder and VAE from the first."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    target = folder / name
    if (target / "model_index.json").is_file():
        return target
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).half()
    if seed:
        unet.save_pretrained(target / "unet")
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            shutil.copytree(folder / MODELS[0] / part, target / part)
        shutil.copy(folder / MODELS[0] / "model_index.json", target)
        return target
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    # The tokenizer weighs nothing beside the rest; any will do.
    tokenizer = Path(__file__).resolve().parent.parent / "builtin" / "base" / "tokenizer"
    StableDiffusionPipeline(
        unet=unet,
        vae=vae.half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(target)
    return target
