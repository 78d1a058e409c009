"""What is counted for Prometheus: plain numbers, added to on the event loop, read at every scrape.

Every label is a model of the catalogue or one of a few fixed words, so that nobody can make the figures grow
without bound by what they ask for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
"""Upper bounds of the histograms' buckets: from a tiny model's preview to a long queue."""

REFUSALS = ("queue_full", "client_share", "model_not_ready", "stopping")
OUTCOMES = ("done", "failed", "cancelled")


class Histogram:
    """How often values fell below each bound, for one label.

    Args:
        bounds: Upper bounds, ascending; a last bucket without bound is added.
    """

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Bound and number of values up to it, as Prometheus wants them."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        reached, buckets = 0, []
        for name, count in zip(names, self._counts, strict=True):
            reached += count
            buckets.append((name, float(reached)))
        return buckets


class GenerationFigures:
    """What has become of the generations since the process started.

    Args:
        models: Full ids of the catalogue; all figures exist from the start, so that rates work at once.

    Attributes:
        ended: How many ended, by model and outcome.
        refused: How many requests were refused, by reason.
        waits: From the request until it joined the running set, in seconds, by model.
        first_previews: From the request to its first preview, in seconds, by model.
        wholes: From the request to its finished picture, in seconds, by model.
    """

    def __init__(self, models: Iterable[str]) -> None:
        ids = tuple(models)
        self.ended: Counter[tuple[str, str]] = Counter({(id_, o): 0 for id_ in ids for o in OUTCOMES})
        self.refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self.waits = {id_: Histogram() for id_ in ids}
        self.first_previews = {id_: Histogram() for id_ in ids}
        self.wholes = {id_: Histogram() for id_ in ids}
