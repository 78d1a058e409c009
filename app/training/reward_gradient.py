"""The gradient of a reward through the picture, where the reward has one.

A policy gradient finds out by trying: each picture tells one number about thousands of latents' numbers. A
reward that can be differentiated tells the direction itself, through the decoder, at the picture x0 that a
step expects (ReFL, arXiv 2304.05977; DRaFT, arXiv 2309.17400). The rest of the chain is not gone through:
what a step expects is taken for what comes of it, hence only steps count at which something can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from app.families.stable_diffusion import StableDiffusion
from app.training.policy import DDIMSteps
from app.training.prompts import Prompt
from app.training.rewards import SoftReward
from app.training.similarity import Recognition

SEEN_FROM = 0.01
"""Least share of signal (cumulative alpha) at which x0 shows the thing: at less it is a mist."""


class RewardGradient:
    """What is learnt, of the x0 of a step, with a gradient.

    Args:
        family: Decodes.
        reward: In its own units.
        recognition: Of the penalty, or None.
    """

    def __init__(self, family: StableDiffusion, reward: SoftReward, recognition: Recognition | None) -> None:
        self._family, self._reward, self._recognition = family, reward, recognition

    @staticmethod
    def steps(steps: DDIMSteps) -> list[int]:
        """Indices of the steps at which something can be seen, of those that draw."""
        return [index for index in steps.random if float(steps.alpha[index]) >= SEEN_FROM]

    def __call__(self, x0: Tensor, prompts: Sequence[Prompt], seed: int) -> tuple[Tensor, Tensor | None]:
        """Reward and log-probability of the own name, (n,) each, as far as there is one.

        Args:
            x0: (n, channels, height, width) predicted latents.
            prompts: Of each.
            seed: Of the names that recognition chooses from.
        """
        pictures = (self._family.decode(x0).float() * 0.5 + 0.5).clamp(0, 1)
        reward = self._reward.soft(pictures, [prompt.text for prompt in prompts])
        if self._recognition is None:
            return reward, None
        return reward, self._recognition.soft(pictures, [prompt.name for prompt in prompts], seed)
