"""Composed pictures made to look as if a small diffusion model had drawn them.

Such pictures are a bit out of shape, blurred, blotchy and noisy. A judge that has only seen clean ones would
take that for a reason to see something else. Everything here is cheap; a third of the pictures stays clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from app.training.compose import CANVAS, Scene, compose

SIDE = 64
"""Pixels that the judges see: half of the canvas, which keeps every thing and averages grain away."""
COARSE = 16
"""Side of the random fields that bend and stain a picture: the latents' grid."""
_CHUNK = 64


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _coarse(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """A smooth random field, of unit variance on the coarse grid."""
    field = torch.randn(count, channels, COARSE, COARSE, generator=generator)
    return F.interpolate(field, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def bend(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 2%, scale by up to 7%, turn by up to 5 degrees and warp; the rim goes on outside."""
    n = len(images)
    scale, angle = _uniform((n,), 0.93, 1.07, generator), _uniform((n,), -0.087, 0.087, generator)
    shift = _uniform((n, 2), -0.045, 0.045, generator)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = (torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    warp = 0.08 * strength.view(-1, 1, 1, 1) * _coarse(n, 2, generator)
    grid = grid + warp.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _soften(images: Tensor) -> Tensor:
    small = F.avg_pool2d(images, 2)
    return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


def _blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _spread(images: Tensor) -> Tensor:
    """The largest value among each pixel and its neighbours; far faster than pooling on CPUs."""
    for axis in (2, 3):
        largest, length = images.clone(), images.shape[axis] - 1
        for to, start in ((0, 1), (1, 0)):
            kept = largest.narrow(axis, to, length)
            torch.maximum(kept, images.narrow(axis, start, length), out=kept)
        images = largest
    return images


def _daub(images: Tensor) -> Tensor:
    """Fill gaps in flat patches, as with a broad brush."""
    return -_spread(-_spread(images))


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bent, softened or daubed, stained, noisy, a little off in colour: each by its own random strength.

    Args:
        images: (n, 3, 64, 64), -1 to 1.
        generator: Decides.

    Returns:
        The same shape and range.
    """
    n = len(images)
    strength = _uniform((n,), -0.5, 1.0, generator).clamp_min(0)
    images = bend(images, strength, generator)
    kind = torch.where(strength > 0, torch.randint(5, (n,), generator=generator), 0)
    for number, change in (
        (1, _soften),
        (2, _blur),
        (3, _daub),
        (4, lambda some: -_daub(-some)),
    ):
        chosen = kind == number
        if chosen.any():
            images[chosen] = change(images[chosen])
    shape = (n, 3, 1, 1)
    weak = strength.view(-1, 1, 1, 1)
    gain, offset = _uniform(shape, 0.94, 1.06, generator), _uniform(shape, -0.06, 0.06, generator)
    stains = 0.2 * weak * _uniform((n, 1, 1, 1), 0, 1, generator) * _coarse(n, 3, generator)
    noise = 0.05 * weak * torch.randn(images.shape, generator=generator)
    return (images * gain + offset + stains + noise).clamp(-1, 1)


def degraded_pictures(
    scenes: Sequence[Scene], pictures: dict[int, Tensor], seed: int, workers: int = 1
) -> Tensor:
    """Every scene composed and degraded, (n, 3, 64, 64) uint8, the same for any number of workers."""
    made = torch.empty(len(scenes), 3, SIDE, SIDE, dtype=torch.uint8)

    def make(start: int) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        images = torch.stack([compose(scene, pictures) for scene in scenes[start : start + _CHUNK]])
        seen = F.avg_pool2d(images, CANVAS // SIDE)
        made[start : start + _CHUNK] = to_bytes(degrade(seen, generator))

    # Whole chunks side by side, each on one thread: threads within such small operations would mostly wait.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            starts = range(0, len(scenes), _CHUNK)
            list(tqdm(pool.map(make, starts), desc="compose", total=len(starts), mininterval=5))
    finally:
        torch.set_num_threads(before)
    return made


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in -1 to 1 as uint8."""
    return ((images + 1) * 127.5).round().to(torch.uint8)
