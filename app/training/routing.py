"""Teaching cross-attention where each slot belongs.

The slots of a prompt show its thing in the middle (`app.training.text`); a picture has it somewhere, perhaps
mirrored. Which slot a cell of the picture should read is therefore known while training, but a denoiser's
gradients hardly tell: left alone, attention stayed blurred, pictures became mosaics of cells, and of what
cells hold beyond their mean three quarters were missing at middle noise, however sharp the slots. So some
heads of the last attention before full resolution are told. (Guided attention, as Tachibana and others used
it to align speech with text, arXiv 1710.08969.) The trained network is a stock one all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from app.training.captions import Statement
from app.training.compose import CANVAS, Scene
from app.training.tokenizer import SLOTS
from app.training.vocabulary import PAIR_SIZE

SIDE = math.isqrt(SLOTS)
CELL_PIXELS = CANVAS // SIDE
TOLD = (2, 4)
"""Heads that are told in the first and the second attention of the up block. The first of each two reads
the slot that the cell's beginning lies in, the other that of its end: a thing may be half a cell off."""


class RecordingProcessor:
    """Plain attention that keeps its probabilities, (n * heads, queries, keys), for one backward pass."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.probabilities: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from (n, queries, width) to (n, keys, width)."""
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(states))
        value = attn.head_to_batch_dim(attn.to_v(states))
        self.probabilities = attn.get_attention_scores(query, key, attention_mask)
        out = attn.batch_to_head_dim(torch.bmm(self.probabilities, value))
        return attn.to_out[1](attn.to_out[0](out))  # type: ignore[no-any-return]


class Routing:
    """Watches the cross-attention of the last up block that has any, and says how far it is off."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Replace the processors of those layers."""
        block = [block for block in unet.up_blocks if getattr(block, "has_cross_attention", False)][-1]
        self.layers = [one.transformer_blocks[0].attn2 for one in block.attentions]
        self.processors = [RecordingProcessor() for _ in self.layers]
        for layer, processor in zip(self.layers, self.processors, strict=True):
            layer.set_processor(processor)

    def loss(self, scenes: Sequence[Scene], said: Sequence[Statement]) -> Tensor:
        """Mean negative log-probability of the right slot, over the cells that show a thing.

        Args:
            scenes: Of the rows of the forward pass just made.
            said: What their captions said.
        """
        first = self.layers[0].to_q.weight.device
        begin, end, known = (part.to(first) for part in sources_of(scenes, said))
        losses = []
        for layer, processor, told in zip(self.layers, self.processors, TOLD, strict=True):
            assert processor.probabilities is not None
            every = processor.probabilities.view(len(scenes), layer.heads, *processor.probabilities.shape[1:])
            processor.probabilities = None
            slots = every[..., -SLOTS:]
            for head in range(told):
                right = (begin, end)[head % 2].unsqueeze(-1)
                chance = slots[:, head].gather(-1, right).squeeze(-1).float()
                losses.append(-(chance.clamp_min(1e-4).log() * known).sum() / known.sum().clamp_min(1))
        return torch.stack(losses).mean()


def sources_of(scenes: Sequence[Scene], said: Sequence[Statement]) -> tuple[Tensor, Tensor, Tensor]:
    """For every cell of each scene its slots, that of its beginning and of its end, and where there is one.

    Returns:
        Two (n, SLOTS) int64 and a (n, SLOTS) bool: cells that show nothing have none, nor has a scene
        without a thing in its caption, nor a small thing whose size is not stated.
    """
    rows = [
        _sources(_geometry(scene), bool(stated.nouns), stated.size)
        for scene, stated in zip(scenes, said, strict=True)
    ]
    begin, end, known = zip(*rows, strict=True)
    return torch.stack(begin), torch.stack(end), torch.stack(known)


Geometry = tuple[str, tuple[bool, ...], tuple[tuple[int, int, int], ...]]


def _geometry(scene: Scene) -> Geometry:
    return scene.size_word, scene.mirrored, tuple(scene.boxes)


@cache
def _sources(geometry: Geometry, named: bool, size: str) -> tuple[Tensor, Tensor, Tensor]:
    size_word, mirrored, boxes = geometry
    begin, end = torch.zeros(2, SLOTS, dtype=torch.int64)
    known = torch.zeros(SLOTS, dtype=torch.bool)
    if not named or (size_word == "small" and size != "small"):
        return begin, end, known
    for box, flipped in zip(boxes, mirrored, strict=True):
        for column, row in _cells(box):
            across, down = _source(column, row, box, flipped, len(boxes) == 2)
            cell = SIDE * row + column
            begin[cell] = SIDE * _clamp(math.floor(down)) + _clamp(math.floor(across))
            end[cell] = SIDE * _clamp(math.ceil(down)) + _clamp(math.ceil(across))
            known[cell] = True
    return begin, end, known


def _cells(box: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Columns and rows of the cells that a box touches."""
    left, top, side = box
    for row in range(top // CELL_PIXELS, -(-(top + side) // CELL_PIXELS)):
        for column in range(left // CELL_PIXELS, -(-(left + side) // CELL_PIXELS)):
            yield column, row


def _source(
    column: int, row: int, box: tuple[int, int, int], flipped: bool, pair: bool
) -> tuple[float, float]:
    """Where in the slots a cell's content is: column and row, in cells, halves between two."""
    left, top, side = box
    slot_left = left if pair else (CANVAS - side) // 2
    slot_top = (CANVAS - PAIR_SIZE) // 2 if pair else (CANVAS - side) // 2
    x, y = CELL_PIXELS * (column + 0.5) - left, CELL_PIXELS * (row + 0.5) - top
    if flipped:
        x = side - x
    return (slot_left + x) / CELL_PIXELS - 0.5, (slot_top + y) / CELL_PIXELS - 0.5


def _clamp(cell: int) -> int:
    return min(max(cell, 0), SIDE - 1)
