"""Scenes: emoji on plain backgrounds, sizes and places on the 8-pixel latent grid."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.training.vocabulary import COLORS, PAIR_SIZE, PLACES, SIZES

CANVAS = 128
GRID = 8


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `nouns` are indices, left to right; `color` is '' for an unnamed background."""

    nouns: tuple[int, ...]
    size_word: str
    place: str
    mirrored: tuple[bool, ...]
    color: str
    rgb: tuple[float, float, float]
    nudge: tuple[int, int] = (0, 0)

    @property
    def boxes(self) -> list[tuple[int, int, int]]:
        """Left, top and side of each subject in pixels."""
        if len(self.nouns) == 2:
            middle = (CANVAS - PAIR_SIZE) // 2
            return [
                (0, middle + self.nudge[0], PAIR_SIZE),
                (CANVAS - PAIR_SIZE, middle + self.nudge[1], PAIR_SIZE),
            ]
        side = SIZES[self.size_word]
        room = (CANVAS - side) // 2
        reach = room if room <= 24 else room - GRID
        dx, dy = PLACES[self.place]
        return [(room + dx * reach, room + dy * reach, side)]


def named_rgb(color: str) -> tuple[float, float, float]:
    """The exact colour of a name, 0 to 1."""
    code = COLORS[color].lstrip("#")
    return (int(code[:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:], 16) / 255)


def random_scene(rng: random.Random, nouns: Sequence[int], pair: float = 0.0) -> Scene:
    """Draw a scene of one of `nouns`, or of two of them with probability `pair`."""
    color = rng.choice(list(COLORS)) if rng.random() < 0.8 else ""
    rgb = named_rgb(color) if color else (rng.random(), rng.random(), rng.random())
    if rng.random() < pair:
        chosen = tuple(rng.sample(list(nouns), 2))
        nudge = (GRID * rng.randint(-1, 1), GRID * rng.randint(-1, 1))
        return Scene(chosen, "", "center", (rng.random() < 0.5, rng.random() < 0.5), color, rgb, nudge)
    size = rng.choices(list(SIZES), (0.2, 0.45, 0.35))[0]
    others = [place for place in PLACES if place != "center"]
    place = (
        "center" if size == "big" or rng.random() < 0.5 else rng.choices(others, (0.35, 0.35, 0.15, 0.15))[0]
    )
    return Scene((rng.choice(list(nouns)),), size, place, (rng.random() < 0.5,), color, rgb)


def compose(scene: Scene, pictures: dict[int, Tensor]) -> Tensor:
    """Paint a scene: (3, 128, 128) float32 in -1 to 1.

    `pictures` maps a side in pixels to premultiplied RGBA (nouns, 4, side, side) uint8.
    """
    image = torch.tensor(scene.rgb).view(3, 1, 1).expand(3, CANVAS, CANVAS).clone()
    for noun, mirrored, (x, y, side) in zip(scene.nouns, scene.mirrored, scene.boxes, strict=True):
        subject = pictures[side][noun].float() / 255
        if mirrored:
            subject = subject.flip(-1)
        patch = image[:, y : y + side, x : x + side]
        image[:, y : y + side, x : x + side] = subject[:3] + (1 - subject[3:]) * patch
    return image * 2 - 1
