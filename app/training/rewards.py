"""What pictures are rewarded for. A reward is one function: pictures and prompts in, one number each out.

Names of rewards that come with Darkroom, as `--reward` takes them:

- `compressibility`, `incompressibility`: minus and plus the kilobytes of a JPEG of quality 95 (the paper's).
- `aesthetic`: `app.training.aesthetic`.
- `alignment`: the cosine of picture and prompt for a contrastive model. `alignment=SOURCE` takes another one
  than the built-in: a folder or a hub id of a SigLIP or CLIP model.
- `laion=FILE`: LAION's aesthetic predictor, whose weights FILE holds (`sac+logos+ava1-l14-linearMSE.pth`);
  `laion=FILE,SOURCE` takes CLIP from SOURCE. For real checkpoints.
- `package.module:function`: your own.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from app.errors import InvalidConfiguration
from app.training.aesthetic import AestheticScore
from app.training.similarity import CONTRASTIVE, load_judge

JPEG_QUALITY = 95


class Reward(Protocol):
    """Higher is better."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str], /) -> Tensor:
        """One finite number a picture, (n,).

        Args:
            pictures: (n, height, width, 3) uint8 on the CPU, as they would be served.
            prompts: Of each picture.
        """


def jpeg_kilobytes(picture: Tensor) -> float:
    """Size of (height, width, 3) uint8 as a JPEG of quality 95, in thousands of bytes."""
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


def compressibility(pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """Minus the kilobytes of each picture's JPEG."""
    return -incompressibility(pictures, prompts)


def incompressibility(pictures: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """Kilobytes of each picture's JPEG."""
    return torch.tensor([jpeg_kilobytes(picture) for picture in pictures], dtype=torch.float64)


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
