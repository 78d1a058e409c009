"""A score of how pleasing a small picture is, by four measures that need no model.

Each measure is taken in standard deviations of the built-in base's own pictures, cut at three of them so that
none can run away with the score, and the four are averaged; the sum is again in standard deviations of base.

- colourfulness: Hasler and Süsstrunk, Measuring colourfulness in natural images, 2003.
- contrast: root mean square of luminance; Peli, Contrast in complex images, 1990.
- sharpness: the reciprocal of the width of edges; after Marziliano and others, A no-reference perceptual blur
  metric, 2002. By the steepest edges, so that grain, which is not steep, gains nothing.
- framing: the share of the picture outside the box that holds the edges; Ke, Tang and Jing, The design of
  high-level features for photo quality assessment, 2006. A subject on a clean ground scores high, stray blobs
  and grain all over score low.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pictures = NDArray[np.uint8]
"""(n, height, width, 3) bytes."""
Values = NDArray[np.float64]
"""(n,)"""

CUT = 3.0
EDGE_SHARE = 0.98
"""Of the edges' energy along each side, 96.04% in the box: Ke and others' figure."""
SCALE_FILE = Path(__file__).with_name("aesthetic.json")


def luminance(pictures: Pictures) -> NDArray[np.float64]:
    """Rec. 601 luma, 0 to 1, (n, height, width)."""
    weighted: NDArray[np.float64] = pictures @ np.array([0.299, 0.587, 0.114]) / 255
    return weighted


def colourfulness(pictures: Pictures) -> Values:
    """Spread of the two opponent colours, plus 0.3 times their distance from grey; 0 is grey, 109 extreme."""
    red, green, blue = np.moveaxis(pictures.astype(np.float64), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt((opponents.std(axis=(2, 3)) ** 2).sum(0))
    offset = np.sqrt((opponents.mean(axis=(2, 3)) ** 2).sum(0))
    return np.asarray(spread + 0.3 * offset)


def contrast(pictures: Pictures) -> Values:
    """Standard deviation of luminance, 0 to 0.5."""
    return np.asarray(luminance(pictures).std(axis=(1, 2)))


def _gradients(pictures: Pictures) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y = luminance(pictures)
    across = np.diff(y, axis=2)[:, :-1]
    down = np.diff(y, axis=1)[:, :, :-1]
    return across, down


def sharpness(pictures: Pictures) -> Values:
    """Reciprocal of the width in pixels of the steepest edges, 0 (flat) to about 1 (black beside white)."""
    across, down = _gradients(pictures)
    steep = np.quantile(np.hypot(across, down), 0.99, axis=(1, 2))
    low, high = np.quantile(luminance(pictures), (0.01, 0.99), axis=(1, 2))
    return np.asarray(np.minimum(steep / np.maximum(high - low, 0.05), 1.0))


def framing(pictures: Pictures) -> Values:
    """1 less the area of the box that holds 96% of the edges' energy: 0 (all over the picture) to 1."""
    across, down = _gradients(pictures)
    energy = across**2 + down**2
    area = _extent(energy.sum(1)) * _extent(energy.sum(2))
    return 1 - area


def _extent(energy: NDArray[np.float64]) -> Values:
    """Share of a side that the middle 98% of each row of (n, length) takes; 1 where there is none."""
    total = energy.sum(1, keepdims=True)
    share = np.cumsum(energy, axis=1) / np.maximum(total, 1e-12)
    tail = (1 - EDGE_SHARE) / 2
    inside = (share >= tail) & (np.roll(share, 1, axis=1) <= 1 - tail)
    extent = inside.sum(1) / energy.shape[1]
    return np.where(total[:, 0] > 1e-6, extent, 1.0)


MEASURES: dict[str, Callable[[Pictures], Values]] = {
    "colourfulness": colourfulness,
    "contrast": contrast,
    "sharpness": sharpness,
    "framing": framing,
}


@dataclass(frozen=True)
class AestheticScore:
    """The score, with base's means and deviations.

    Attributes:
        measures: By name, mean and deviation over base's pictures.
        deviation: Of the mean of the four over base's pictures.
        mean: Of the mean of the four over base's pictures: near 0, not 0 since they are cut.
    """

    measures: dict[str, tuple[float, float]]
    mean: float = 0.0
    deviation: float = 1.0

    def __call__(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Scores (n,) of (n, height, width, 3) uint8: 0 is base's mean, 1 is one deviation of base better."""
        return torch.from_numpy((self._average(pictures.numpy()) - self.mean) / self.deviation)

    def _average(self, pictures: Pictures) -> Values:
        values = [
            ((measure(pictures) - self.measures[name][0]) / self.measures[name][1]).clip(-CUT, CUT)
            for name, measure in MEASURES.items()
        ]
        return np.asarray(np.mean(values, axis=0))

    @classmethod
    def fitted(cls, given: Tensor) -> AestheticScore:
        """The score whose standard deviations are those of (n, height, width, 3) uint8."""
        pictures = given.numpy()
        taken = {name: measure(pictures) for name, measure in MEASURES.items()}
        rough = cls({name: (float(value.mean()), float(value.std()) + 1e-9) for name, value in taken.items()})
        average = rough._average(pictures)
        return cls(rough.measures, float(average.mean()), float(average.std()) + 1e-9)

    def save(self, file: Path = SCALE_FILE) -> None:
        """Write the numbers as JSON."""
        content = {"measures": self.measures, "mean": self.mean, "deviation": self.deviation}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path = SCALE_FILE) -> AestheticScore:
        """The score on the shipped base's standard deviations."""
        content = json.loads(file.read_text(encoding="utf-8"))
        measures = {name: (mean, deviation) for name, (mean, deviation) in content["measures"].items()}
        return cls(measures, content["mean"], content["deviation"])
