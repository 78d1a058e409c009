"""Contact sheets: 24 prompts of one model, or 8 prompts of several models with the sizes of their files."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from app.catalog.loader import load_catalog
from app.engine.loading import load_family
from app.engine.worker import resolve_device
from app.training.drawing import draw_served
from app.training.jpeg import QUALITY, jpeg_kilobytes

PROMPTS = """
a cat; a dog on a green background; a sunset; a red apple; a cat on a blue background
a small rocket on the left; a big pizza on a teal background; a fox and a mushroom; an owl
a penguin on the right; a banana; a car; a bicycle on a yellow background; a castle; a guitar; a robot
a donut on a pink background; a tree; a house on the left; a mountain; a ghost on a purple background
a small star at the top; coffee; a bee and a sunflower
"""
"""Of the sheet of one model."""
COMPARED = """
a cat on a blue background; a sunset; a red apple; an owl; a rocket on a purple background; a pizza; a castle
a fox and a mushroom
"""
"""Of the sheet of several models."""
COLUMNS = 8
GAP, LINE, FONT_SIZE = 4, 13, 11
GROUND, INK = "#111111", "#f5f5f5"


@dataclass(frozen=True)
class Cell:
    """A picture, (height, width, 3) uint8, and the words under it."""

    picture: Tensor
    words: str


def split_prompts(text: str) -> list[str]:
    """Prompts separated by ';' or on lines of their own."""
    return [prompt.strip() for prompt in text.replace("\n", ";").split(";") if prompt.strip()]


def draw_sheet(cells: Sequence[Cell], columns: int, rows: Sequence[str] = ()) -> Image.Image:
    """A grid of pictures with their words under them, row by row.

    Args:
        cells: All of one size.
        columns: Pictures in a row.
        rows: What to write above each row, if anything.
    """
    height, width = cells[0].picture.shape[:2]
    font = ImageFont.load_default(size=FONT_SIZE)
    # Half the size of the font is the mean width of its letters.
    wrapped = [textwrap.wrap(cell.words, int(width / (FONT_SIZE * 0.5))) for cell in cells]
    head = LINE + 2 * GAP if rows else 0
    step_x = width + GAP
    step_y = head + height + GAP + LINE * max(1, *(len(words) for words in wrapped))
    count = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * step_x + GAP, count * step_y + GAP), GROUND)
    pen = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        pen.text((GAP, GAP + index * step_y + GAP // 2), row, fill=INK, font=font)
    for index, (cell, words) in enumerate(zip(cells, wrapped, strict=True)):
        x, y = GAP + index % columns * step_x, GAP + index // columns * step_y + head
        sheet.paste(Image.fromarray(cell.picture.numpy()), (x, y))
        pen.multiline_text((x + 1, y + height), "\n".join(words), fill=INK, font=font, spacing=1)
    return sheet


def make_sheet(args: argparse.Namespace) -> None:
    """Draw `args.prompts` with `args.models` (ids or bare names, comma-separated) at the same seeds.

    Several models get a row each, with the sizes of their JPEGs; one gets all rows.
    """
    catalog = load_catalog(args.catalog.split(","))
    entries = [catalog.resolve(name) for name in args.models.split(",")]
    several = len(entries) > 1
    prompts = split_prompts(args.prompts or (COMPARED if several else PROMPTS))
    cells: list[Cell] = []
    for entry in entries:
        family = load_family(entry, resolve_device(args.device), torch.float32)
        wanted = [(prompt, args.seed + index) for index, prompt in enumerate(prompts)]
        for prompt, picture in zip(prompts, draw_served(family, entry, wanted), strict=True):
            size = f": {jpeg_kilobytes(picture):.1f} kB" if several else ""
            cells.append(Cell(picture, prompt + size))
        print(f"{entry.id}: {len(prompts)} pictures", flush=True)
    names = [f"{entry.id}, JPEGs of quality {QUALITY}" for entry in entries] if several else []
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(cells, len(prompts) if several else min(COLUMNS, len(prompts)), names).save(out, optimize=True)
    print(f"wrote {out}")
