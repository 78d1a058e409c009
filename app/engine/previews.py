"""Previews of `denoised` by a linear map from a 3×3 neighbourhood of latents to a patch of pixels.

A full decode at every step would nearly halve the speed; a 1×1 linear map (what others call latent-to-RGB)
loses edges. A 3×3-to-patch map is one small convolution for the whole batch and is fitted to the model's own
VAE by ridge regression, so it needs no weights from anywhere.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.families.base import Family

JPEG_QUALITY = 80
"""A preview is looked at for a fraction of a second; at 80 a 128 px one takes 4 to 6 kB."""

FIT_PICTURES = 32
"""Pictures of ours that a map is fitted on."""

_RIDGE = 1e-3
"""Relative to the mean diagonal of the normal equations."""


@dataclass(frozen=True)
class PreviewMap:
    """A linear map from latents to pixels.

    Attributes:
        weight: [3·patch², channels, kernel, kernel], float32.
        bias: [3·patch²], float32.
        patch: Pixels along the side of the patch that one latent becomes.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    patch: int

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures from latents.

        Args:
            latents: [n, channels, height, width], scaled as in the denoising loop.

        Returns:
            [n, 3, height·patch, width·patch], about −1 … 1.
        """
        margin = self.weight.shape[-1] // 2
        padded = F.pad(latents.to(self.weight), (margin,) * 4, mode="replicate") if margin else latents
        return F.pixel_shuffle(F.conv2d(padded.to(self.weight), self.weight, self.bias), self.patch)

    def pixels(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """The same as `to_pixels` of the pictures, in half the time.

        The range of bytes is in the weights, and what is rearranged are bytes and not floats.

        Args:
            latents: [n, channels, height, width], scaled as in the denoising loop.

        Returns:
            [n, height·patch, width·patch, 3] on the CPU.
        """
        margin = self.weight.shape[-1] // 2
        padded = F.pad(latents.to(self.weight), (margin,) * 4, mode="replicate") if margin else latents
        weight, bias = self._byte_weights
        patches = F.conv2d(padded.to(weight), weight, bias).clamp_(0, 255).to(torch.uint8)
        n, _, height, width = patches.shape
        grid = patches.view(n, self.patch, self.patch, 3, height, width).permute(0, 4, 1, 5, 2, 3)
        pixels: NDArray[np.uint8] = grid.reshape(n, height * self.patch, width * self.patch, 3).cpu().numpy()
        return pixels

    @cached_property
    def _byte_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias for 0 … 255, their outputs ordered by row, column and colour of the patch."""
        order = torch.arange(3 * self.patch**2, device=self.bias.device).view(3, self.patch, self.patch)
        order = order.permute(1, 2, 0).flatten()
        return self.weight[order] * 127.5, self.bias[order] * 127.5 + 127.5

    def to(self, device: torch.device) -> PreviewMap:
        """The same map on another device."""
        return PreviewMap(self.weight.to(device), self.bias.to(device), self.patch)


@torch.inference_mode()
def fit_preview_map(latents: torch.Tensor, pictures: torch.Tensor, kernel: int, patch: int) -> PreviewMap:
    """Ridge regression from latent neighbourhoods to the decoded pixels of the same place.

    Args:
        latents: [n, channels, height, width], scaled.
        pictures: What the VAE decodes them to, [n, 3, height·factor, width·factor], −1 … 1.
        kernel: Side of the neighbourhood, 1 or 3.
        patch: Side of the patch; at most the VAE's factor, smaller means averaged pixels.
    """
    channels = latents.shape[1]
    height, width = latents.shape[-2:]
    pixels = F.adaptive_avg_pool2d(pictures.float(), (height * patch, width * patch))
    margin = kernel // 2
    padded = F.pad(latents.float(), (margin,) * 4, mode="replicate") if margin else latents.float()
    features = F.unfold(padded, kernel).transpose(1, 2).flatten(0, 1).double()
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    targets = F.pixel_unshuffle(pixels, patch).flatten(2).transpose(1, 2).flatten(0, 1).double()
    gram = features.T @ features
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    ridge[-1, -1] = 0.0
    solution = torch.linalg.solve(gram + ridge, features.T @ targets).float()
    weight = solution[:-1].T.reshape(3 * patch**2, channels, kernel, kernel).contiguous()
    return PreviewMap(weight, solution[-1].contiguous(), patch)


@torch.inference_mode()
def preview_map_for(family: Family, width: int, height: int, cache: Path | None) -> PreviewMap:
    """The 3×3 map of a model's VAE: from the cache if it was fitted before, else fitted now.

    Args:
        family: The loaded model.
        width: Its usual size in pixels.
        height: Its usual size in pixels.
        cache: Folder of fitted maps, named by a hash of the VAE; None keeps nothing.
    """
    _, rows, columns = family.latent_shape(width, height)
    # Small models show every pixel; a 512 px preview would cost more to send than it shows.
    patch = 8 if max(rows, columns) <= 32 else 4
    probe = _fit_latents(family, width, height, 4)
    file = None if cache is None else cache / f"{_fingerprint(family, probe)}-{patch}.safetensors"
    if file is not None and file.is_file():
        try:
            stored = load_file(file)
            return PreviewMap(stored["weight"], stored["bias"], patch).to(family.device)
        except (OSError, SafetensorError, KeyError):
            file.unlink(missing_ok=True)
    latents = torch.cat([probe, _fit_latents(family, width, height, FIT_PICTURES - 4, first=4)])
    # Halfway through, `denoised` is a blend of the pictures that are still possible: teach it blends as well.
    latents = torch.cat([latents, (latents + latents.roll(1, 0)) / 2])
    pictures = torch.cat([family.decode(chunk).float() for chunk in torch.split(latents, 8)])
    fitted = fit_preview_map(latents, pictures, kernel=3, patch=patch)
    if file is not None:
        _store(fitted, file)
    return fitted.to(family.device)


def to_pixels(pictures: torch.Tensor) -> NDArray[np.uint8]:
    """Pictures [n, 3, height, width] in −1 … 1 as [n, height, width, 3] bytes on the CPU."""
    pixels: NDArray[np.uint8] = (
        pictures.mul(127.5)
        .add_(127.5)
        .clamp_(0, 255)
        .to(torch.uint8)
        .permute(0, 2, 3, 1)
        .contiguous()
        .cpu()
        .numpy()
    )
    return pixels


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """One preview [height, width, 3] as JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def sample_pictures(width: int, height: int, count: int, first: int = 0) -> torch.Tensor:
    """Pictures of ours to fit on: coloured grounds with shaded discs, boxes and stripes, seeded.

    Args:
        width: Pixels.
        height: Pixels.
        count: How many.
        first: Number of the first one; the same number is the same picture.

    Returns:
        [count, 3, height, width] in −1 … 1.
    """
    return torch.stack([_sample_picture(width, height, first + i) for i in range(count)])


def _sample_picture(width: int, height: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    picture = np.broadcast_to(rng.uniform(0, 1, (3, 1, 1)), (3, height, width)).copy()
    picture += rng.uniform(-0.3, 0.3, (3, 1, 1)) * x + rng.uniform(-0.3, 0.3, (3, 1, 1)) * y
    for _ in range(rng.integers(2, 8)):
        cx, cy, radius, angle = (
            rng.uniform(0, 1),
            rng.uniform(0, 1),
            rng.uniform(0.03, 0.35),
            rng.uniform(0, 3.2),
        )
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / rng.uniform(0.3, 1)
        kind = rng.integers(3)
        distance = np.hypot(u, v) if kind == 0 else np.maximum(abs(u), abs(v)) if kind == 1 else abs(u) * 3
        cover = np.clip((radius - distance) * max(width, height) + 0.5, 0, 1)
        shade = rng.uniform(0, 1, (3, 1, 1)) + rng.uniform(-1, 1) * (u + v) * 1.5
        picture = picture * (1 - cover) + shade * cover
    return torch.from_numpy(np.clip(picture, 0, 1) * 2 - 1).float()


def _fit_latents(family: Family, width: int, height: int, count: int, first: int = 0) -> torch.Tensor:
    pictures = sample_pictures(width, height, count, first)
    return torch.cat([family.encode_pictures(chunk) for chunk in torch.split(pictures, 8)]).float()


def _fingerprint(family: Family, probe: torch.Tensor) -> str:
    """A hash of the VAE by what it does: how it decodes one fixed latent, rounded against other devices."""
    decoded = family.decode(probe[:1]).float().cpu()
    coarse = F.adaptive_avg_pool2d(decoded, 16).mul(50).round().to(torch.int16)
    return hashlib.sha256(coarse.numpy().tobytes() + str(tuple(probe.shape)).encode()).hexdigest()[:16]


def _store(fitted: PreviewMap, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({"weight": fitted.weight.contiguous().cpu(), "bias": fitted.bias.contiguous().cpu()}, partial)
    partial.replace(file)
