"""Other contrastive models than ours as judges, and whether a picture is found again by its name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from app.training.judge import BUILTIN, CARD, Judge

CONTRASTIVE = BUILTIN / "contrastive"
CHOICES = 50
"""Names that a picture's own must be the nearest of."""

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ForeignJudge(Judge):
    """Any SigLIP or CLIP model with its own tokenizer.

    Args:
        source: A folder with model and tokenizer, or a hub id.
        device: Where it runs, in float32.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        config = AutoConfig.from_pretrained(source)
        model: Any = AutoModel.from_pretrained(source, dtype=torch.float32).to(device)
        super().__init__(model, AutoTokenizer.from_pretrained(source))
        self._length = int(config.text_config.max_position_embeddings)
        self._clip = config.model_type == "clip"

    def embed(self, pictures: Tensor) -> Tensor:
        """Unit embeddings (n, width) of (n, 3, height, width) in 0 to 1, where they are, with a gradient."""
        side = self.model.config.vision_config.image_size
        mean, std = (torch.tensor(v).view(3, 1, 1).to(pictures) for v in (_CLIP_MEAN, _CLIP_STD))
        if pictures.shape[2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pictures - mean) / std if self._clip else pictures * 2 - 1
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (n, width), float32 on the CPU."""
        read = self.tokenizer(
            list(texts), padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        # SigLIP was trained without a mask, and its tokenizer gives none.
        return F.normalize(self.model.get_text_features(**read).pooler_output, dim=1).cpu()


def load_judge(source: str | Path, device: torch.device) -> Judge:
    """A folder of ours, another folder in transformers' layout, or a hub id."""
    if (Path(source) / CARD).is_file():
        return Judge.load(Path(source), device)
    return ForeignJudge(str(source), device)


class Recognition:
    """Finds pictures again by the name of what they show, among 50 names.

    Args:
        judge: A contrastive model.
        names: All names that pictures can have.
    """

    def __init__(self, judge: Judge, names: Sequence[str]) -> None:
        self._judge = judge
        self._names = list(dict.fromkeys(names))
        self._embeds = judge.texts(self._names)
        self._scale = float(judge.model.logit_scale.exp())

    def __call__(self, pictures: Tensor, names: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
        """How surely, and whether, each picture is found again.

        Args:
            pictures: (n, height, width, 3) uint8.
            names: Of each.
            seed: Of the choice of the other 49 for each.

        Returns:
            Log-probability of its own name among the 50, and 1 where that is the most probable one, else 0.
        """
        logits = self._logits(self._judge.pictures(pictures).double(), names, seed)
        return logits.log_softmax(1)[:, 0], (logits.argmax(1) == 0).double()

    def soft(self, pictures: Tensor, names: Sequence[str], seed: int) -> Tensor:
        """The log-probabilities alone, of (n, 3, height, width) in 0 to 1, with a gradient."""
        return self._logits(self._judge.embed(pictures), names, seed).log_softmax(1)[:, 0]

    def _logits(self, seen: Tensor, names: Sequence[str], seed: int) -> Tensor:
        """(n, 50), the own name first."""
        rng, rows = random.Random(seed), []
        for name in names:
            own = self._names.index(name)
            others = [index for index in range(len(self._names)) if index != own]
            rows.append([own, *rng.sample(others, min(CHOICES - 1, len(others)))])
        chosen = self._embeds[torch.tensor(rows)].to(seen)
        return self._scale * torch.einsum("nkd,nd->nk", chosen, seen)
