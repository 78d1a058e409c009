"""LAION's aesthetic predictor, for real checkpoints: a small network on CLIP's embedding of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import InvalidConfiguration
from app.training.similarity import ForeignJudge

CLIP = "openai/clip-vit-large-patch14"


class LaionAesthetic:
    """Scores of about 1 to 10, as people gave them (christophschuhmann/improved-aesthetic-predictor).

    Args:
        weights: The predictor's state, a `.pth` file of tensors alone.
        clip: Folder or hub id of the CLIP model it was trained on; None is ViT-L/14.
        device: Where it runs.

    Raises:
        InvalidConfiguration: The file holds something else.
    """

    def __init__(self, weights: Path, clip: str | None, device: torch.device) -> None:
        self._clip = ForeignJudge(clip or CLIP, device)
        state = torch.load(weights, map_location=device, weights_only=True)
        first = state.get("layers.0.weight", torch.empty(0, 1))
        # Dropout between the layers has no weights, yet counts in their names; nothing bends in between.
        self._layers = nn.Sequential(
            nn.Linear(first.shape[1], 1024), nn.Dropout(), nn.Linear(1024, 128), nn.Dropout(),
            nn.Linear(128, 64), nn.Dropout(), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip
        layers = {name.removeprefix("layers."): value for name, value in state.items()}
        try:
            self._layers.load_state_dict(layers)
        except RuntimeError as exc:
            raise InvalidConfiguration(f"reward: {weights.name} holds no aesthetic predictor.") from exc
        self._layers.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def __call__(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Score each of (n, height, width, 3) uint8."""
        return self._scores(self._clip.pictures(pictures).to(self._device)).double().cpu()

    def soft(self, pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """The same of (n, 3, height, width) in 0 to 1, with a gradient."""
        return self._scores(self._clip.embed(pictures))

    def _scores(self, embeds: Tensor) -> Tensor:
        scores: Tensor = self._layers(embeds).squeeze(1)
        return scores
