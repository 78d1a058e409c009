"""Pictures to train on: the 3-D Fluent emoji and their names.

The data folder holds three unpacked npm packages, all MIT licensed::

    npm pack @lobehub/fluent-emoji-3d && tar xf lobehub-fluent-emoji-3d-*.tgz

unpacked to `lobehub-fluent-emoji-3d-1.1.0/`, `emoji-datasource-16.0.0/` and `emojilib-4.0.3/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

FLUENT = "lobehub-fluent-emoji-3d-1.1.0/assets"
DATASOURCE = "emoji-datasource-16.0.0/emoji.json"
KEYWORDS = "emojilib-4.0.3/dist/emoji-en-US.json"
SKIPPED = ("Flags", "Symbols", "Component")


@dataclass(frozen=True)
class Emoji:
    """One emoji that has a 3-D picture."""

    name: str
    category: str
    path: Path
    keywords: tuple[str, ...]


def read_emoji(data: Path) -> list[Emoji]:
    """List every emoji of the usable categories that has a picture, in the standard's order."""
    keywords: dict[str, list[str]] = json.loads((data / KEYWORDS).read_text())
    entries: list[dict[str, Any]] = json.loads((data / DATASOURCE).read_text())
    found = []
    for entry in sorted(entries, key=lambda e: int(e["sort_order"])):
        if entry["category"] in SKIPPED:
            continue
        code = str(entry["unified"]).lower()
        for stem in (code, code.replace("-fe0f", "")):
            path = data / FLUENT / f"{stem}.webp"
            if path.exists():
                character = "".join(chr(int(part, 16)) for part in code.split("-"))
                words = keywords.get(character) or keywords.get(character.replace("\ufe0f", "")) or []
                found.append(
                    Emoji(
                        entry["short_name"], f"{entry['category']}/{entry['subcategory']}", path, tuple(words)
                    )
                )
                break
    return found


def load_rgba(path: Path, size: int) -> torch.Tensor:
    """Read one picture as premultiplied RGBA, uint8, (4, size, size)."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0
    pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=2)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize(
                (size, size), Image.Resampling.LANCZOS
            )
        )
        for c in range(4)
    ]
    stacked = np.clip(np.stack(planes), 0.0, 1.0)
    return torch.from_numpy(np.round(stacked * 255.0).astype(np.uint8))


def load_bank(data: Path, sides: Sequence[int], cache: Path) -> tuple[dict[int, torch.Tensor], int]:
    """All emoji but people at each side: premultiplied RGBA, (count, 4, side, side) uint8; cached."""
    if cache.exists():
        pictures, names = torch.load(cache, weights_only=True)
        return pictures, len(names)
    emoji = [entry for entry in read_emoji(data) if not entry.category.startswith("People")]
    pictures = {side: torch.stack([load_rgba(entry.path, side) for entry in emoji]) for side in sides}
    torch.save((pictures, [entry.name for entry in emoji]), cache)
    return pictures, len(emoji)
