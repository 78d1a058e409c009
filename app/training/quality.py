"""Figures of a built-in model by pixels: asked background, asked side, variety, and errors of the VAE."""

from __future__ import annotations

import argparse
import json
import math
import random

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from app.training.compose import CANVAS, named_rgb
from app.training.vocabulary import COLORS, read_nouns

BORDER = 4
"""Pixels at the rim that count as background."""


def background_of(image: Tensor) -> str:
    """The named colour nearest to the median of the rim of (3, h, w), 0 to 1."""
    rim = torch.ones(image.shape[1:], dtype=torch.bool)
    rim[BORDER:-BORDER, BORDER:-BORDER] = False
    median = image[:, rim].median(1).values
    return min(COLORS, key=lambda name: float((median - torch.tensor(named_rgb(name))).norm()))


def side_of(image: Tensor) -> str:
    """Where what differs from the rim is: 'left' or 'right'; (3, h, w), 0 to 1."""
    rim = torch.cat([image[:, :BORDER].flatten(1), image[:, -BORDER:].flatten(1)], 1).median(1).values
    mass = (image - rim.view(3, 1, 1)).abs().sum(0)
    mass = torch.where(mass > 0.2, mass, torch.zeros(()))
    center = (mass.sum(0) * torch.arange(image.shape[2])).sum() / mass.sum().clamp_min(1e-6)
    return "left" if center < CANVAS / 2 else "right"


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def pictures(
    pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float, seed: int
) -> Tensor:
    """One picture a prompt: (n, 3, 128, 128), 0 to 1."""
    parts = []
    for start in range(0, len(prompts), 16):
        some = prompts[start : start + 16]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
        result = pipeline(
            some, num_inference_steps=steps, guidance_scale=guidance, height=CANVAS, width=CANVAS,
            eta=1.0, generator=generators, output_type="pt",
        )  # fmt: skip
        parts.append(result.images.float())
    return torch.cat(parts)


def measure(args: argparse.Namespace) -> None:
    """Print, as JSON, the share of right backgrounds and sides over `args.count` random prompts each."""
    pipeline = StableDiffusionPipeline.from_pretrained(args.out, dtype=getattr(torch, args.dtype))
    pipeline.set_progress_bar_config(disable=True)
    rng, nouns = random.Random(7), [noun.word for noun in read_nouns()]
    colors = [rng.choice(list(COLORS)) for _ in range(args.count)]
    sides = [rng.choice(("left", "right")) for _ in range(args.count)]
    by_color = [f"a {rng.choice(nouns)} on a {color} background" for color in colors]
    by_side = [f"a {rng.choice(('', 'small '))}{rng.choice(nouns)} on the {side}" for side in sides]
    figures: dict[str, object] = {"steps": args.steps, "guidance": args.guidance, "dtype": args.dtype}
    for name, prompts, asked, judge in (
        ("background", by_color, colors, background_of),
        ("side", by_side, sides, side_of),
    ):
        images = pictures(pipeline, prompts, args.steps, args.guidance, seed=1000)
        right = sum(judge(image) == want for image, want in zip(images, asked, strict=True))
        figures[name] = {
            "right": right / len(asked),
            "interval": interval(right, len(asked)),
            "n": len(asked),
        }
    print(json.dumps(figures, indent=1))
