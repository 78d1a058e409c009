"""What pictures are rewarded for. A reward is one function: pictures and prompts in, one number each out.

Names of rewards that come with Darkroom, as `--reward` takes them:

- `compressibility`, `incompressibility`: minus and plus the kilobytes of a JPEG (`app.training.jpeg`).
- `aesthetic`: `app.training.aesthetic`.
- `alignment`: the cosine of picture and prompt for a contrastive model. `alignment=SOURCE` takes another one
  than the built-in: a folder or a hub id of a SigLIP or CLIP model.
- `laion=FILE`: LAION's aesthetic predictor, whose weights FILE holds (`sac+logos+ava1-l14-linearMSE.pth`);
  `laion=FILE,SOURCE` takes CLIP from SOURCE. For real checkpoints.
- `package.module:function`: your own.

A reward with a method (or attribute) `soft` is learnt many times faster: see `SoftReward`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from app.errors import InvalidConfiguration
from app.training.aesthetic import AestheticScore
from app.training.jpeg import JpegKilobytes
from app.training.similarity import CONTRASTIVE, load_judge


class Reward(Protocol):
    """Higher is better."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """One finite number a picture, (n,).

        Args:
            pictures: (n, height, width, 3) uint8 on the CPU, as they would be served.
            prompts: Of each picture.
        """


@runtime_checkable
class SoftReward(Protocol):
    """A reward with a differentiable twin, so that its maximum need not be found by trying alone."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """As `Reward`."""

    def soft(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """About the same numbers, (n,), in the same units, with a gradient to the pictures.

        Args:
            pictures: (n, 3, height, width) float in 0 to 1, where the model is.
            prompts: Of each picture.
        """


compressibility, incompressibility = JpegKilobytes(-1), JpegKilobytes(1)


def _laion(argument: str, device: torch.device) -> Reward:
    from app.training.laion import LaionAesthetic

    file, _, clip = argument.partition(",")
    if not Path(file).is_file():
        raise InvalidConfiguration(f"reward: laion=FILE: there is no file {file!r}.")
    return LaionAesthetic(Path(file), clip or None, device)


_MADE: dict[str, Callable[[str, torch.device], Reward]] = {
    "compressibility": lambda argument, device: compressibility,
    "incompressibility": lambda argument, device: incompressibility,
    "aesthetic": lambda argument, device: AestheticScore.load(),
    "alignment": lambda argument, device: load_judge(argument or CONTRASTIVE, device),
    "laion": _laion,
}
NAMES = tuple(_MADE)


def load_reward(spec: str, device: torch.device) -> Reward:
    """The reward that `--reward` names.

    Args:
        spec: See the module.
        device: Where a reward that is a model runs.

    Raises:
        InvalidConfiguration: There is none of that name.
    """
    name, _, argument = spec.partition("=")
    if name in _MADE:
        return _MADE[name](argument, device)
    module, colon, function = spec.partition(":")
    if not colon:
        known = ", ".join(NAMES)
        raise InvalidConfiguration(
            f"reward: {spec!r} is neither of {known} nor of the form package.module:function."
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise InvalidConfiguration(f"reward: {spec!r} cannot be imported: {exc}.") from exc
    if not callable(found):
        raise InvalidConfiguration(f"reward: {spec!r} is no function.")
    return found  # type: ignore[no-any-return]


def checked(reward: Reward, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """The rewards, float64 on the CPU, if they are what a reward must return.

    Raises:
        InvalidConfiguration: Not one finite number a picture.
    """
    values = torch.as_tensor(reward(pictures, prompts), dtype=torch.float64).cpu()
    if values.shape != (len(pictures),) or not bool(values.isfinite().all()):
        raise InvalidConfiguration(
            f"reward: it returned {tuple(values.shape)} for {len(pictures)} pictures, or numbers that are "
            "not finite."
        )
    return values
