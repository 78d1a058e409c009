"""A score of how pleasing a small picture is, by four measures that need no model.

Each measure is taken in standard deviations of the built-in base's own pictures, cut at three of them so that
none can run away with the score, and the four are averaged; the sum is again in standard deviations of base.
All is made of differentiable steps, so that the score has a gradient to learn from.

- colourfulness: Hasler and Süsstrunk, Measuring colourfulness in natural images, 2003.
- contrast: root mean square of luminance; Peli, Contrast in complex images, 1990.
- sharpness: the reciprocal of the width of edges; after Marziliano and others, A no-reference perceptual blur
  metric, 2002. By the steepest edges, so that grain, which is not steep, gains nothing.
- framing: the share of the picture outside the box that holds the edges; Ke, Tang and Jing, The design of
  high-level features for photo quality assessment, 2006. A subject on a clean ground scores high, stray blobs
  and grain all over score low. The box's edges are soft by half a percent of the energy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CUT = 3.0
EDGE_SHARE = 0.98
"""Of the edges' energy along each side, 96.04% in the box: Ke and others' figure."""
SOFTNESS = 0.005
"""Share of the energy over which the box's edges are soft."""
BAND = 0.005
"""A quantile is the mean of what lies so near to it: its gradient is that of many pixels, not of one."""
SCALE_FILE = Path(__file__).with_name("aesthetic.json")


def luminance(pictures: Tensor) -> Tensor:
    """Rec. 601 luma (n, height, width), 0 to 1, of (n, 3, height, width) in 0 to 1."""
    red, green, blue = pictures.unbind(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _root(squares: Tensor) -> Tensor:
    return (squares + 1e-12).sqrt()  # A gradient of 0, not of infinity, at 0.


def colourfulness(pictures: Tensor) -> Tensor:
    """Spread of the two opponent colours, plus 0.3 times their distance from grey; 0 is grey, 109 extreme."""
    red, green, blue = (255 * pictures).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = _root(opponents.var(2, correction=0).sum(0))
    return spread + 0.3 * _root(opponents.mean(2).square().sum(0))


def contrast(pictures: Tensor) -> Tensor:
    """Standard deviation of luminance, 0 to 0.5."""
    return _root(luminance(pictures).flatten(1).var(1, correction=0))


def _gradients(y: Tensor) -> Tensor:
    """Squared gradient (n, height - 1, width - 1) of (n, height, width)."""
    return y.diff(dim=2)[:, :-1] ** 2 + y.diff(dim=1)[:, :, :-1] ** 2


def _quantile(values: Tensor, share: float) -> Tensor:
    ordered = values.flatten(1).sort(1).values
    first, last = (round((share + side * BAND) * (ordered.shape[1] - 1)) for side in (-1, 1))
    return ordered[:, first : last + 1].mean(1)


def sharpness(pictures: Tensor) -> Tensor:
    """Reciprocal of the width in pixels of the steepest edges, 0 (flat) to about 1 (black beside white)."""
    y = luminance(pictures)
    steep = _quantile(_root(_gradients(y)), 0.99)
    spread = _quantile(y, 0.99) - _quantile(y, 0.01)
    return (steep / spread.clamp_min(0.05)).clamp_max(1)


def framing(pictures: Tensor) -> Tensor:
    """1 less the area of the box that holds 96% of the edges' energy: 0 (all over the picture) to 1."""
    energy = _gradients(luminance(pictures))
    return 1 - _extent(energy.sum(1)) * _extent(energy.sum(2))


def _extent(energy: Tensor) -> Tensor:
    """Share of a side that the middle 98% of each row of (n, length) takes; 1 where there is none."""
    total = energy.sum(1, keepdim=True)
    after = energy.cumsum(1) / total.clamp_min(1e-12)
    before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], 1)
    tail = (1 - EDGE_SHARE) / 2
    inside = ((after - tail) / SOFTNESS).sigmoid() * ((1 - tail - before) / SOFTNESS).sigmoid()
    return torch.where(total[:, 0] > 1e-6, inside.mean(1), 1.0)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "colourfulness": colourfulness,
    "contrast": contrast,
    "sharpness": sharpness,
    "framing": framing,
}
"""Each of (n, 3, height, width) in 0 to 1; one number a picture, (n,)."""


def _unit(pictures: Tensor) -> Tensor:
    return pictures.permute(0, 3, 1, 2).double() / 255


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
        return self.soft(_unit(pictures))

    def soft(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """The same of (n, 3, height, width) in 0 to 1, with a gradient."""
        return (self._average(pictures) - self.mean) / self.deviation

    def _average(self, pictures: Tensor) -> Tensor:
        values = [
            ((measure(pictures) - self.measures[name][0]) / self.measures[name][1]).clamp(-CUT, CUT)
            for name, measure in MEASURES.items()
        ]
        return torch.stack(values).mean(0)

    @classmethod
    def fitted(cls, given: Tensor) -> AestheticScore:
        """The score whose standard deviations are those of (n, height, width, 3) uint8."""
        pictures = _unit(given)
        taken = {name: _moments(measure(pictures)) for name, measure in MEASURES.items()}
        rough = cls(taken)
        return cls(taken, *_moments(rough._average(pictures)))

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


def _moments(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=0)) + 1e-9
