"""Pictures by the engine's own functions, without queue, previews or events around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.catalog.entry import CatalogEntry
from app.engine.denoising import decode_pixels, denoise_step
from app.engine.request import GenerationRequest
from app.engine.running import RunningRequest
from app.families.base import Family


def make_requests(entry: CatalogEntry, prompts: Sequence[str], steps: int) -> list[GenerationRequest]:
    """One request per prompt by the model's defaults, seeds counting from 0."""
    defaults = entry.defaults
    return [
        GenerationRequest(
            id=str(seed),
            model=entry.id,
            prompt=prompt,
            negative_prompt="",
            seed=seed,
            steps=steps,
            guidance_scale=defaults.guidance_scale,
            eta=defaults.eta,
            width=defaults.width,
            height=defaults.height,
            noise_scheduler=defaults.noise_scheduler,
        )
        for seed, prompt in enumerate(prompts)
    ]


@torch.inference_mode()
def make_pictures(family: Family, entry: CatalogEntry, prompts: Sequence[str], steps: int) -> torch.Tensor:
    """All prompts in one batch; [n, height, width, 3] uint8."""
    running = [RunningRequest(request, family) for request in make_requests(entry, prompts, steps)]
    while not running[0].done:
        for failure in denoise_step(family, running).values():
            raise failure
    return decode_pixels(family, torch.cat([one.latents for one in running]))


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
