"""What a user would do instead: stock diffusers, one request after another, no previews.

Run as ``python -m app.bench.plain FOLDER DTYPE THREADS COUNT STEPS GUIDANCE``; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from app.bench.prompts import prompts


def main(folder: str, dtype: str, threads: int, count: int, steps: int, guidance_scale: float) -> None:
    """Make pictures one by one, three times over; print the best images per second."""
    torch.set_num_threads(threads)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    pipeline("warm up", **arguments)
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for seed, prompt in enumerate(prompts(count)):
            pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seed), **arguments)
        rounds.append(count / (time.perf_counter() - began))
    print(json.dumps({"images_per_second": max(rounds), "rounds": rounds}))


if __name__ == "__main__":
    folder, dtype, threads, count, steps, guidance_scale = sys.argv[1:]
    main(folder, dtype, int(threads), int(count), int(steps), float(guidance_scale))
