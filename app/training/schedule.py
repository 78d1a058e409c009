"""Learning rates by the clock: a run has so many minutes, however fast the machine is meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Clock:
    """How far a run is. Time before a resumption counts; time between stopping and resuming does not."""

    minutes: float
    used: float = 0.0
    """Seconds used before this process."""

    def __post_init__(self) -> None:
        """Start."""
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds used so far, over all processes."""
        return self.used + time.monotonic() - self._start

    @property
    def share(self) -> float:
        """Share of the time used, 0 to 1 and beyond."""
        return self.seconds / (60 * self.minutes)


def factor(step: int, share: float, warmup: int, decay: float) -> float:
    """Learning-rate factor: warm-up over steps, constant, then falling over the last `decay` of the time."""
    return min(1.0, (step + 1) / warmup) * min(1.0, max(0.01, (1 - share) / decay))


def set_rates(optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[float], scale: float) -> None:
    """Set each optimiser's learning rate to its own times `scale`."""
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
