"""Which device a model goes to when there are several. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def place(sizes: Mapping[str, int], free: Sequence[int]) -> dict[str, int]:
    """Largest model first, each to the device that then has most room left.

    Args:
        sizes: Bytes of weights by model; 0 where unknown.
        free: Free bytes by device.

    Returns:
        Index of the device by model.
    """
    room = list(free)
    placed: dict[str, int] = {}
    held = [0] * len(room)
    for model in sorted(sizes, key=lambda one: -sizes[one]):
        # Where nothing is known of sizes, the number of models decides.
        device = max(range(len(room)), key=lambda index: (room[index], -held[index], -index))
        placed[model] = device
        room[device] -= sizes[model]
        held[device] += 1
    return placed
