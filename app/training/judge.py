"""A contrastive model in use: embeddings of pictures and texts, and how well the two agree."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer, SiglipModel

from app.training.tokenizer import encode

BUILTIN = Path(__file__).resolve().parent.parent / "builtin"
TOKENIZER = BUILTIN / "base" / "tokenizer"
"""The contrastive models read texts with the tokenizer of the base: it is shipped once."""
CARD = "card.json"
_BATCH = 128


class Judge:
    """Embeds pictures and texts into one space; called, it is a metric and a reward.

    Args:
        model: The weights, in float32.
        tokenizer: What the model was trained with.
    """

    def __init__(self, model: SiglipModel, tokenizer: CLIPTokenizer) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu", tokenizer: Path = TOKENIZER) -> Self:
        """Load a shipped folder, offline.

        Raises:
            OSError: There are no weights in `folder`.
        """
        model = SiglipModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.to(device), CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True))

    def embed(self, pictures: Tensor) -> Tensor:
        """Unit embeddings (n, width) of (n, 3, height, width) in 0 to 1, where they are, with a gradient."""
        side, pixels = self.model.config.vision_config.image_size, pictures * 2 - 1
        if pixels.shape[2:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="area")
        return F.normalize(self.model.get_image_features(pixels).pooler_output, dim=1)

    @torch.no_grad()
    def pictures(self, pictures: Tensor) -> Tensor:
        """Unit embeddings (n, width), float32 on the CPU, of pictures (n, height, width, 3) uint8."""
        parts = []
        for some in torch.split(pictures, _BATCH):
            unit = some.to(self.model.device).permute(0, 3, 1, 2).float() / 255
            parts.append(self.embed(unit).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (n, width), float32 on the CPU."""
        ids = torch.tensor(encode(self.tokenizer, list(texts))).to(self.model.device)
        parts = [self.model.get_text_features(some).pooler_output for some in torch.split(ids, _BATCH)]
        return F.normalize(torch.cat(parts), dim=1).cpu()

    def _texts_of(self, prompts: Sequence[str]) -> Tensor:
        distinct = list(dict.fromkeys(prompts))
        place = {text: index for index, text in enumerate(distinct)}
        return self.texts(distinct)[[place[prompt] for prompt in prompts]]

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Alignment, (n,): the cosine of each picture, (n, height, width, 3) uint8, and its prompt."""
        return (self.pictures(pictures) * self._texts_of(prompts)).sum(1)

    def soft(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """The same of (n, 3, height, width) in 0 to 1, with a gradient."""
        return (self.embed(pictures) * self._texts_of(prompts).to(pictures.device)).sum(1)


def read_card(folder: Path) -> dict[str, Any]:
    """What was noted when the model was exported: steps, the tokenizer's hash, figures on real pictures."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card


def tokenizer_hash(tokenizer: CLIPTokenizer) -> str:
    """SHA-256 of the tokenizer's vocabulary and merges."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def export_judge(judge: Judge, folder: Path, card: dict[str, Any]) -> None:
    """Write fp16 weights, configuration and card to `folder`, replacing what is there in one rename."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(judge.model).cpu().half().save_pretrained(new)
    note = {**card, "tokenizer_sha256": tokenizer_hash(judge.tokenizer)}
    (new / CARD).write_text(json.dumps(note, indent=1) + "\n")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
