"""The size of a picture as a JPEG file: exactly, and as a differentiable estimate.

A JPEG's bytes are the binary digits of its quantised cosine coefficients (ITU-T T.81). The estimate counts
log2(1 + (2 v)²) of them for a coefficient that is v quantisation steps large: none for 0, about 2 more for
each doubling. Sum and file correlate by 0.997 over pictures of the built-in base.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

QUALITY = 95
"""Of the paper's rewards (arXiv 2305.13301)."""
HEADERS, PER_DIGIT = 0.55, 1.112 / 8000
"""Kilobytes of a file without coefficients, and per counted digit: least squares over 64 pictures of base."""
_SIDE = 8


def jpeg_kilobytes(picture: Tensor) -> float:
    """Size of (height, width, 3) uint8 as a JPEG of quality 95, in thousands of bytes."""
    return _written(Image.fromarray(picture.numpy())).tell() / 1000


def _written(image: Image.Image) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer


@cache
def _quantisation() -> tuple[Tensor, Tensor]:
    """Pillow's tables of that quality, (8, 8): of luma and of chroma."""
    written = _written(Image.new("RGB", (_SIDE, _SIDE)))
    tables = Image.open(written).quantization  # type: ignore[attr-defined]
    luma, chroma = (torch.tensor(tables[index]).float().view(_SIDE, _SIDE) for index in (0, 1))
    return luma, chroma


@cache
def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 numbers, (8, 8): a row a frequency."""
    k = torch.arange(_SIDE).float()
    rows = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    rows[0] /= math.sqrt(2)
    return rows


def soft_kilobytes(pictures: Tensor) -> Tensor:
    """About the thousands of bytes of each picture's JPEG of quality 95, with a gradient.

    Args:
        pictures: (n, 3, height, width) in 0 to 1, sides multiples of 16.

    Returns:
        (n,)
    """
    red, green, blue = (255 * pictures).unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # JFIF
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    luma_steps, chroma_steps = (table.to(pictures) for table in _quantisation())
    digits = _digits(luma.unsqueeze(1) - 128, luma_steps) + _digits(F.avg_pool2d(chroma, 2), chroma_steps)
    return HEADERS + PER_DIGIT * digits


def _digits(planes: Tensor, steps: Tensor) -> Tensor:
    """Binary digits (n,) of the coefficients of (n, planes, height, width)."""
    n, count, height, width = planes.shape
    blocks = planes.reshape(n, count, height // _SIDE, _SIDE, width // _SIDE, _SIDE).transpose(3, 4)
    cosines = _cosines().to(planes)
    coefficients = cosines @ blocks @ cosines.T / steps
    return torch.log2(1 + (2 * coefficients) ** 2).flatten(1).sum(1)


@dataclass(frozen=True)
class JpegKilobytes:
    """The reward of the paper: `sign` times the kilobytes of a picture's JPEG."""

    sign: int

    def __call__(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """(n,) of (n, height, width, 3) uint8."""
        return self.sign * torch.tensor([jpeg_kilobytes(one) for one in pictures], dtype=torch.float64)

    def soft(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """About the same of (n, 3, height, width) in 0 to 1, with a gradient."""
        return self.sign * soft_kilobytes(pictures)
