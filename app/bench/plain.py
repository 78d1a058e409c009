"""What a user would do instead: stock diffusers without previews, one request after another, or in batches.

Run as ``python -m app.bench.plain FOLDER DTYPE THREADS COUNT STEPS GUIDANCE DEVICE BATCH``; prints one JSON
object.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from app.bench.prompts import prompts


def main(
    folder: str,
    dtype: str,
    threads: int,
    count: int,
    steps: int,
    guidance_scale: float,
    device: str,
    batch: int,
) -> None:
    """Make the pictures three times over; print the best images per second."""
    torch.set_num_threads(threads)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        folder, dtype=getattr(torch, dtype), safety_checker=None, requires_safety_checker=False
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    pipeline(["warm up"] * batch, **arguments)
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for first in range(0, count, batch):
            seeds = range(first, first + batch)
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            # Pictures come back as PIL images: the device has finished by then.
            pipeline(prompts(count)[first : first + batch], generator=generators, **arguments)
        rounds.append(count / (time.perf_counter() - began))
    print(json.dumps({"images_per_second": max(rounds), "rounds": rounds}))


if __name__ == "__main__":
    folder, dtype, threads, count, steps, guidance_scale, device, batch = sys.argv[1:]
    main(folder, dtype, int(threads), int(count), int(steps), float(guidance_scale), device, int(batch))
