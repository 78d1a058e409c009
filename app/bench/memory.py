"""`darkroom bench memory`: what holding equal tensors once saves, at the true size of Stable Diffusion 1.x.

Makes four checkpoints of that geometry with random weights, which share text encoder and VAE as the four DDPO
models do, loads them in float16, and counts the weights held with and without sharing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from app.bench.checkpoints import MODELS, write_checkpoint

if TYPE_CHECKING:
    from app.families.stable_diffusion import StableDiffusion


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
            family = _load(write_checkpoint(folder, name, seed), device)
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
