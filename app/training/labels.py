"""Which captions of a batch are true of which of its pictures.

A batch shows the same thing several times, and a caption leaves most facts open, so that it may be just as
true of a neighbour as of its own picture. The scenes are known: nothing has to be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.training.captions import Statement
from app.training.compose import Scene, named_rgb
from app.training.vocabulary import COLORS, PLACES, SIZES

NONE = -1
_COLORS = {name: index for index, name in enumerate(COLORS)}
_SIZES = {name: index for index, name in enumerate(SIZES)}
_PLACES = {name: index for index, name in enumerate(PLACES)}


def scene_facts(scenes: Sequence[Scene]) -> Tensor:
    """Facts as numbers, (n, 6): first and second thing, named background, nearest name, size, place.

    What there is none of is `NONE`: a second thing, a name of a random background, a pair's size and place.
    """
    rows = []
    for scene in scenes:
        pair = len(scene.nouns) == 2
        rows.append(
            [
                scene.nouns[0],
                scene.nouns[1] if pair else NONE,
                _COLORS[scene.color] if scene.color else NONE,
                _COLORS[scene.color or _nearest(scene.rgb)],
                NONE if pair else _SIZES[scene.size_word],
                NONE if pair else _PLACES[scene.place],
            ]
        )
    return torch.tensor(rows)


def _nearest(rgb: tuple[float, float, float]) -> str:
    return min(COLORS, key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, named_rgb(name), strict=True)))


def statement_facts(statements: Sequence[Statement]) -> Tensor:
    """Statements as numbers, (m, 6): both things, ordered, background, size, place; `NONE` if open."""
    return torch.tensor(
        [
            [
                said.nouns[0],
                said.nouns[1] if len(said.nouns) == 2 else NONE,
                int(said.ordered),
                _COLORS[said.color] if said.color else NONE,
                _SIZES[said.size] if said.size else NONE,
                _PLACES[said.place] if said.place else NONE,
            ]
            for said in statements
        ]
    )


def label_matrix(statements: Tensor, scenes: Tensor) -> Tensor:
    """1 where the statement is true of the picture, -1 where it is false, 0 where people could differ.

    One could differ on whether a random background has the name that comes nearest to it, and on whether one
    of two things is small or on the left. A caption of one thing is true of a pair that shows it.

    Args:
        statements: (m, 6), of `statement_facts`; all name at least one thing.
        scenes: (n, 6), of `scene_facts`.

    Returns:
        (m, n), int8.
    """
    first, second, ordered, color, size, place = statements[:, :, None].unbind(1)
    a, b, named, nearest, sized, placed = scenes[None].unbind(2)
    single = second == NONE
    told = (first == a) & (second == b)
    swapped = (first == b) & (second == a) & (ordered == 0)
    true = torch.where(single, (first == a) | (first == b), told | swapped)
    open_ = torch.zeros_like(true)
    true &= (color == NONE) | (color == nearest)
    open_ |= (color != NONE) & (named == NONE)
    for said, shown in ((size, sized), (place, placed)):
        true &= (said == NONE) | (said == shown) | (shown == NONE)
        open_ |= (said != NONE) & (shown == NONE)
    labels = torch.where(true, 1, -1)
    return torch.where(true & open_, 0, labels).to(torch.int8)
