"""Different prompts for every request, so that no cache makes a benchmark look better than life."""

from __future__ import annotations

_SUBJECTS = ("cat", "rocket", "pizza", "tree", "fish", "guitar", "apple", "house", "car", "flower", "owl")
_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "pink")


def prompts(count: int) -> list[str]:
    """`count` prompts, the first 88 of them different."""
    return [
        f"a {_SUBJECTS[i % len(_SUBJECTS)]} on a {_COLOURS[i % len(_COLOURS)]} background"
        for i in range(count)
    ]
