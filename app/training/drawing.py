"""Pictures as they are served, by the engine's own functions; the scale of the aesthetic score."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.catalog.entry import CatalogEntry
from app.catalog.loader import load_catalog
from app.engine.denoising import decode_pixels, denoise_step
from app.engine.loading import load_family
from app.engine.request import GenerationRequest
from app.engine.running import RunningRequest
from app.engine.worker import resolve_device
from app.families.base import Family
from app.training.aesthetic import SCALE_FILE, AestheticScore
from app.training.prompts import read_prompts


@torch.inference_mode()
def draw_served(
    family: Family, entry: CatalogEntry, wanted: Sequence[tuple[str, int]], batch: int = 16
) -> Tensor:
    """A picture for each (prompt, seed) by the model's defaults, (n, height, width, 3) uint8."""
    defaults, parts = entry.defaults, []
    for start in range(0, len(wanted), batch):
        running = [
            RunningRequest(
                GenerationRequest(
                    id=str(number), model=entry.id, prompt=prompt, negative_prompt="", seed=seed,
                    steps=defaults.steps, guidance_scale=defaults.guidance_scale, eta=defaults.eta,
                    width=defaults.width, height=defaults.height, noise_scheduler=defaults.noise_scheduler,
                ),
                family,
            )
            for number, (prompt, seed) in enumerate(wanted[start : start + batch])
        ]  # fmt: skip
        while not running[0].done:
            for failure in denoise_step(family, running).values():
                raise failure
        parts.append(decode_pixels(family, torch.cat([one.latents for one in running])))
    return torch.cat(parts)


def write_scale(args: argparse.Namespace) -> None:
    """Draw `args.count` pictures with `args.model`; write the scale of the aesthetic score."""
    entry = load_catalog(["builtin"]).resolve(args.model)
    family = load_family(entry, resolve_device(args.device), torch.float32)
    prompts = read_prompts("", entry.folder, args.count, seed=0)
    pictures = draw_served(family, entry, [(prompt.text, seed) for seed, prompt in enumerate(prompts)])
    score = AestheticScore.fitted(pictures)
    score.save(Path(args.out) if args.out else SCALE_FILE)
    print(f"aesthetic: {len(pictures)} pictures of {entry.id}: {score.measures}")
