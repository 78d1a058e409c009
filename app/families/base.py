"""The protocol between the engine and an architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model sees it.

    Attributes:
        embeds: [1, tokens, width], in the model's dtype and on its device.
        cut: The words at the end that the text encoder never sees, '' if none.
    """

    embeds: torch.Tensor
    cut: str


class Family(Protocol):
    """One loaded model of some architecture. Not thread-safe: used from the engine thread alone."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of a forward."""

    @property
    def noise_scheduler_config(self) -> dict[str, Any]:
        """Configuration that noise schedulers are made from."""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of a picture in pixels."""

    def encode_prompt(self, text: str) -> EncodedPrompt:
        """Encode one text, alone, so that the embedding does not depend on company."""

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """One forward pass.

        Args:
            latents: [rows, channels, height, width], already scaled for the model input.
            timesteps: [rows], float32.
            prompt_embeds: [rows, tokens, width].

        Returns:
            noise_pred: [rows, channels, height, width] in the model's dtype.
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures from latents: [n, 3, height, width], −1 … 1 (not clamped)."""

    def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents (scaled, the mode of the posterior) from pictures [n, 3, height, width] in −1 … 1."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and buffer held, by part and name; assigning `.data` replaces one."""
