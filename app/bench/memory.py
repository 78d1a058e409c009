"""`darkroom bench memory`: what holding equal tensors once saves, at the true size of Stable Diffusion 1.x.

Makes four checkpoints of that geometry with random weights, which share text encoder and VAE as the four DDPO
models do, loads them in float16, and counts the weights held with and without sharing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.families.stable_diffusion import StableDiffusion

MODELS = ("aesthetic", "alignment", "compressibility", "incompressibility")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `darkroom bench memory` takes."""
    parser.add_argument("--folder", type=Path, help="where the checkpoints go, 7.3 GB (default: temporary)")
    parser.add_argument("--device", default="cpu", help="'cpu', 'cuda:0' … (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    import psutil
    import torch

    from app.engine.sharing import memory_use, share_equal_tensors
    from app.engine.worker import resolve_device

    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        families: dict[str, StableDiffusion] = {}
        without = 0
        for seed, name in enumerate(MODELS):
            family = _load(_checkpoint(folder, name, seed), device)
            without += sum(tensor.nbytes for _, tensor in family.named_weights())
            share_equal_tensors(family, list(families.values()))
            families[name] = family
            print(f"{name} is loaded", flush=True)
        use = memory_use(families)
        held = sum(one.alone for one in use.values()) + use[MODELS[0]].shared
        ideal = sum(_part(family, "unet") for family in families.values())
        ideal += _part(families[MODELS[0]], "vae") + _part(families[MODELS[0]], "text_encoder")
        print("\n| four models of SD 1.x size, float16 | GB of weights |\n|---|---|")
        print(f"| each by itself | {without / 1e9:.2f} |")
        print(f"| equal tensors held once | {held / 1e9:.2f} |")
        print(f"| 4 UNets + 1 VAE + 1 text encoder | {ideal / 1e9:.2f} |")
        print(f"\nHeld: {held / ideal:.3f} of the ideal, {held / without:.2f} of each by itself.")
        if device.type == "cuda":
            print(f"Peak reserved: {torch.cuda.max_memory_reserved(device) / 1e9:.2f} GB.")
        else:
            print(f"Resident memory of the process: {psutil.Process().memory_info().rss / 1e9:.2f} GB.")
    return 0


def _part(family: StableDiffusion, part: str) -> int:
    return sum(tensor.nbytes for name, tensor in family.named_weights() if name.startswith(f"{part}."))


def _load(folder: Path, device: object) -> StableDiffusion:
    import dataclasses

    import torch

    from app.catalog.loader import load_catalog
    from app.engine.loading import load_family

    entry = dataclasses.replace(load_catalog(["builtin"]).default, name=folder.name, source=str(folder))
    return load_family(entry, torch.device(str(device)), torch.float16)


def _checkpoint(folder: Path, name: str, seed: int) -> Path:
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
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(target)
    return target
