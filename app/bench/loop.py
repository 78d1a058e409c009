"""The bare batched loop: text encoding, forwards, noise schedulers, one batched decode. No serving around it.

Run as ``python -m app.bench.loop CATALOG MODEL DTYPE THREADS BATCH COUNT STEPS DEVICE``; prints one JSON
object. The same functions do the work as in the engine; what is missing is the queue, previews, events, HTTP
and storage. The cost of previews is measured here too, undisturbed: the map, the JPEG, and the message that
carries it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from datetime import UTC, datetime

import torch

from app.bench.pictures import make_requests, synchronise
from app.bench.prompts import prompts
from app.catalog.entry import CatalogEntry
from app.catalog.loader import load_catalog
from app.engine.denoising import decode_pixels, denoise_step
from app.engine.loading import load_family
from app.engine.previews import encode_jpeg, preview_map_for
from app.engine.request import GenerationRequest
from app.engine.running import RunningRequest
from app.engine.warm_up import warm_up_picture
from app.families.stable_diffusion import StableDiffusion
from app.services.views import GenerationView
from app.web.sse import generation_message


def main(
    catalog: str, model: str, dtype: str, threads: int, batch: int, count: int, steps: int, device: str
) -> None:
    """Run `count` requests in batches of `batch`, three times over; print the best, and the previews."""
    torch.set_num_threads(threads)
    entry = load_catalog([catalog]).resolve(model)
    # As the engine does it: half precision on the CPU is made from float32, a GPU loads what it runs.
    on_cpu = device == "cpu"
    family = load_family(entry, torch.device(device), torch.float32 if on_cpu else getattr(torch, dtype))
    if on_cpu and dtype != "float32":
        family = family.in_dtype(getattr(torch, dtype))
    warm_up_picture(family, entry)
    _round(family, make_requests(entry, prompts(batch), steps), batch)
    rounds, step_times = [], []
    for _ in range(3):
        began = time.perf_counter()
        step_times += _round(family, make_requests(entry, prompts(count), steps), batch)
        rounds.append(count / (time.perf_counter() - began))
    previews = _preview_seconds(family, entry, batch)
    result = {
        "images_per_second": max(rounds),
        "rounds": rounds,
        "step_seconds": statistics.median(step_times),
        "preview_seconds": previews,
    }
    print(json.dumps(result))


@torch.inference_mode()
def _round(family: StableDiffusion, requests: list[GenerationRequest], batch: int) -> list[float]:
    """Run all requests in full batches; returns the seconds of each step."""
    times = []
    for first in range(0, len(requests), batch):
        running = [RunningRequest(request, family) for request in requests[first : first + batch]]
        while not running[0].done:
            began = time.perf_counter()
            denoise_step(family, running)
            synchronise(family.device)
            times.append(time.perf_counter() - began)
        decode_pixels(family, torch.cat([one.latents for one in running]))
    return times


@torch.inference_mode()
def _preview_seconds(family: StableDiffusion, entry: CatalogEntry, batch: int) -> dict[str, float]:
    """Median seconds that the previews of one step of a full batch cost, by part."""
    preview_map = preview_map_for(family, entry.defaults.width, entry.defaults.height, None)
    running = [RunningRequest(request, family) for request in make_requests(entry, prompts(batch), steps=8)]
    for _ in range(6):
        denoise_step(family, running)
    latents = [one.denoised for one in running]
    parts: dict[str, list[float]] = {"map": [], "encode": [], "serialise": []}
    for _ in range(20):
        t0 = time.perf_counter()
        pixels = preview_map.pixels(torch.cat(latents))  # on the CPU: the device has finished
        t1 = time.perf_counter()
        encoded = [encode_jpeg(one) for one in pixels]
        t2 = time.perf_counter()
        views = [dataclasses.replace(_view(entry), preview=jpeg) for jpeg in encoded]
        t3 = time.perf_counter()
        for view in views:
            generation_message(view)
        t4 = time.perf_counter()
        parts["map"].append(t1 - t0)
        parts["encode"].append(t2 - t1)
        parts["serialise"].append(t4 - t3)
    return {part: statistics.median(times) for part, times in parts.items()}


def _view(entry: CatalogEntry) -> GenerationView:
    """A running generation of the usual kind, to measure what its message costs."""
    defaults = entry.defaults
    return GenerationView(
        id="x" * 22,
        batch_id="x" * 22,
        position=0,
        state="running",
        model=entry.name,
        model_id=entry.id,
        prompt=prompts(1)[0],
        negative_prompt="",
        seed=0,
        steps=20,
        step=6,
        width=defaults.width,
        height=defaults.height,
        guidance_scale=defaults.guidance_scale,
        eta=0.0,
        noise_scheduler=defaults.noise_scheduler,
        created_at=datetime.now(UTC),
        seconds=1.0,
        seconds_left=1.0,
    )


if __name__ == "__main__":
    catalog, model, dtype, *numbers, device = sys.argv[1:]
    threads, batch, count, steps = map(int, numbers)
    main(catalog, model, dtype, threads, batch, count, steps, device)
