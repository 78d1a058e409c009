"""Giving way to other work on the machine.

Two threads that share a core are many times slower than one (oneDNN's barriers spin), so a run in
the background uses only as many threads as there are cores left over by others.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

STAT = Path("/proc/stat")


class Threads:
    """Sets torch's thread count by what other processes use; does nothing where /proc/stat is missing."""

    def __init__(self, most: int, seconds: float = 1.0) -> None:
        """Use at most `most` threads; look every `seconds`."""
        self.most, self.seconds = most, seconds
        self._last = self._now()

    def _now(self) -> tuple[float, float, float]:
        busy = 0.0
        if STAT.exists():
            fields = list(map(int, STAT.read_text().split("\n", 1)[0].split()[1:9]))
            # What runs at a lower priority than this gives way by itself.
            idle = fields[3] + fields[4] + (fields[1] if os.nice(0) <= 0 else 0)
            busy = (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, time.process_time()

    def adapt(self) -> None:
        """Call between steps."""
        if time.monotonic() - self._last[0] < self.seconds or not STAT.exists():
            return
        now = self._now()
        wall, busy, own = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        others = max(0.0, (busy - own) / wall)
        wanted = max(1, min(self.most, int((os.cpu_count() or 1) - others + 0.7)))
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
