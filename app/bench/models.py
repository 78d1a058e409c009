"""`darkroom bench models`: every model of a catalogue, loaded together: seconds, images, memory."""

from __future__ import annotations

import argparse
import time

from app.bench.prompts import prompts
from app.catalog.loader import load_catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `darkroom bench models` takes."""
    parser.add_argument("--catalog", default="builtin", help="sets, comma-separated (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=4, help="pictures of each (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda:0' … (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table, with what sharing saves."""
    import torch

    from app.bench.pictures import make_pictures, synchronise
    from app.engine.loading import load_family
    from app.engine.sharing import memory_use, share_equal_tensors
    from app.engine.worker import resolve_device
    from app.families.stable_diffusion import StableDiffusion

    device = resolve_device(arguments.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    families: dict[str, StableDiffusion] = {}
    saved, rows = 0, []
    for entry in load_catalog(arguments.catalog.split(",")).entries:
        family = load_family(entry, device, dtype)
        saved += share_equal_tensors(family, list(families.values()))
        families[entry.id] = family
        make_pictures(family, entry, prompts(1), steps=min(2, entry.defaults.steps))
        synchronise(device)
        began = time.perf_counter()
        for prompt in prompts(arguments.pictures):
            make_pictures(family, entry, [prompt], steps=entry.defaults.steps)
        synchronise(device)
        rows.append((entry, (time.perf_counter() - began) / arguments.pictures))
    use = memory_use(families)
    print("| model | steps | seconds | images/s | memory alone | memory shared |\n|---|---|---|---|---|---|")
    for entry, seconds in rows:
        alone, shared = use[entry.id].alone / 1e6, use[entry.id].shared / 1e6
        print(
            f"| {entry.id} | {entry.defaults.steps} | {seconds:.2f} | {1 / seconds:.2f} "
            f"| {alone:.0f} MB | {shared:.0f} MB |"
        )
    print(f"\nHolding equal tensors once saves {saved / 1e6:.0f} MB.")
    return 0
