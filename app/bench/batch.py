"""`darkroom bench batch`: what batching gains for one model: batch, seconds, images per second."""

from __future__ import annotations

import argparse
import time

from app.bench.prompts import prompts
from app.catalog.loader import load_catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `darkroom bench batch` takes."""
    parser.add_argument("--catalog", default="builtin", help="catalogue of the model (default: %(default)s)")
    parser.add_argument("--model", help="full id or bare name (default: the catalogue's default)")
    parser.add_argument("--batches", default="1,2,4,8,16", help="pictures per batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="inference steps (default: the model's)")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda:0' … (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision (default: float32, float16 on CUDA)")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table, and the batch that the engine would choose."""
    import torch

    from app.bench.pictures import make_pictures, synchronise
    from app.engine.loading import load_family
    from app.engine.warm_up import measure_steps, warm_up_picture
    from app.engine.worker import resolve_device

    entry = load_catalog([arguments.catalog]).resolve(arguments.model)
    device = resolve_device(arguments.device)
    auto = "float16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, auto if arguments.dtype == "auto" else arguments.dtype)
    family = load_family(entry, device, dtype)
    warm_up_picture(family, entry)
    steps = arguments.steps or entry.defaults.steps
    print(f"{entry.id}, {dtype}, {device}, {steps} steps, {entry.defaults.width}×{entry.defaults.height}")
    print("| batch | seconds | images/s |\n|---|---|---|")
    for batch in map(int, arguments.batches.split(",")):
        make_pictures(family, entry, prompts(batch), steps=2)
        synchronise(device)
        began = time.perf_counter()
        make_pictures(family, entry, prompts(batch), steps=steps)
        synchronise(device)
        seconds = time.perf_counter() - began
        print(f"| {batch} | {seconds:.2f} | {batch / seconds:.2f} |", flush=True)
    times = measure_steps(family, entry)
    print(
        f"\nThe engine takes batches of {times.batch_rows} forward rows ({times.batch_seconds * 1e3:.0f} ms)."
    )
    return 0
