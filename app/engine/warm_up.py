"""Measured once per model before it serves: the batch size, the cost of a step, and the best precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.catalog.entry import CatalogEntry
from app.engine.denoising import decode_pixels, denoise_step
from app.engine.faults import is_out_of_memory, release_cached_memory
from app.engine.request import GenerationRequest
from app.engine.running import RunningRequest
from app.families.base import Family

MAX_ROWS = 64
"""Most forward rows of one batch; beyond it a newcomer would wait too long for its first step."""

GOOD_ENOUGH = 0.95
"""The largest batch with at least this share of the best throughput is taken: a larger one serves more people
at the same speed, and one disturbed measurement must not leave a server with tiny batches for its life."""

HOPELESS = 0.7
"""Doubling ends where throughput falls below this share of the best."""

RATIO_ROWS = 16
"""Forward rows at which two precisions are compared: a batch as it is common, and soon measured."""

MIN_PSNR = 30.0
"""dB between the final pictures in half precision and in float32, below which half precision is refused."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a forward costs.

    Attributes:
        batch_rows: Rows of the best batch.
        batch_seconds: Seconds of one step of that batch.
        guided_step_seconds: Seconds of one guided step of a request alone (2 rows).
    """

    batch_rows: int
    batch_seconds: float
    guided_step_seconds: float


@torch.inference_mode()
def measure_steps(family: Family, entry: CatalogEntry) -> StepTimes:
    """Double the batch while that may still gain and memory allows.

    Args:
        family: The loaded model.
        entry: For the default size.
    """
    times: dict[int, float] = {}
    rows = 2
    while rows <= MAX_ROWS:
        try:
            # The first run of a size also prepares its kernels, which is part of warming up.
            times[rows] = _fastest_forward(family, entry, rows, tries=4 if rows <= 4 else 2)
        except (RuntimeError, MemoryError) as error:
            if rows == 2 or not is_out_of_memory(error):
                raise
            release_cached_memory()
            break
        if _rate(times, rows) < HOPELESS * max(_rate(times, r) for r in times):
            break
        rows *= 2
    best = max(_rate(times, rows) for rows in times)
    chosen = max(rows for rows in times if _rate(times, rows) >= GOOD_ENOUGH * best)
    return StepTimes(chosen, times[chosen], times[2])


@torch.inference_mode()
def speed_ratio(family: Family, other: Family, entry: CatalogEntry) -> float:
    """How many times as fast `family` runs a batch of `RATIO_ROWS` as `other`, measured in turns.

    In turns, because a machine that others use changes its speed within seconds: measured one after the
    other, the same two models have come out at 0.5 and at 1.5.
    """
    pairs = range(3)
    times = [
        (_fastest_forward(family, entry, RATIO_ROWS, 1), _fastest_forward(other, entry, RATIO_ROWS, 1))
        for _ in pairs
    ]
    return min(theirs for _, theirs in times) / min(ours for ours, _ in times)


def _rate(times: dict[int, float], rows: int) -> float:
    return rows / times[rows]


def _fastest_forward(family: Family, entry: CatalogEntry, rows: int, tries: int) -> float:
    """Seconds of a forward of so many rows: the fastest of a few, since others use the machine too."""
    shape = family.latent_shape(entry.defaults.width, entry.defaults.height)
    latents = torch.zeros((rows, *shape), dtype=torch.float32, device=family.device)
    timesteps = torch.full((rows,), 500.0, dtype=torch.float32, device=family.device)
    embeds = family.encode_prompt("").embeds.expand(rows, -1, -1).contiguous()
    return min(
        _timed(lambda: family.predict_noise(latents, timesteps, embeds), family.device) for _ in range(tries)
    )


@torch.inference_mode()
def warm_up_picture(family: Family, entry: CatalogEntry) -> torch.Tensor:
    """One picture by the model's defaults, [height, width, 3] uint8; warms every path."""
    defaults = entry.defaults
    request = GenerationRequest(
        id="warm-up",
        model=entry.id,
        prompt=entry.examples[0] if entry.examples else "a picture",
        negative_prompt="",
        seed=0,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        eta=0.0,
        width=defaults.width,
        height=defaults.height,
        noise_scheduler=defaults.noise_scheduler,
        step_seed=0,
    )
    running = RunningRequest(request, family)
    while not running.done:
        failures = denoise_step(family, [running])
        for failure in failures.values():
            raise failure
    return decode_pixels(family, running.latents)[0]


def picture_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinity if equal."""
    error = (a.float() - b.float()).square().mean().item()
    return float("inf") if error == 0 else 10 * torch.log10(torch.tensor(255.0**2 / error)).item()


def computes_bfloat16_natively() -> bool:
    """Whether this CPU has bfloat16 dot products or tiles, where half precision gains from batching."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(probe() for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
