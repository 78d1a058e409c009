"""The safety checker: sees every finished picture before anybody else does.

It is CLIP's image encoder and twenty concepts to compare with, as Stable Diffusion 1.x came with. Off unless
asked for; loaded once per device, whatever the number of models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image

from app.catalog.entry import CatalogEntry
from app.engine.hub import HubAccess, Report, fetch
from app.engine.loading import reading
from app.engine.room import check_room
from app.engine.weight_files import SAFETY_CHECKER
from app.errors import ModelLoadError

# It warns of black pictures in its own words; ours are told to whoever asked for the picture.
diffusers_logging.get_logger("diffusers.pipelines.stable_diffusion.safety_checker").setLevel("ERROR")

_BLURRED_SIDE = 8
"""Patches of colour along a side of a blurred preview: how bright and how red, not what."""


class SafetyChecker:
    """Says which pictures must not be shown. Not thread-safe: used from the engine thread alone.

    Args:
        model: A `StableDiffusionSafetyChecker` on its device.
        feature_extractor: The image processor that it was trained with.
    """

    def __init__(self, model: Any, feature_extractor: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._feature_extractor = feature_extractor

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights that it holds."""
        return sum(tensor.nbytes for tensor in self._model.parameters())

    @torch.inference_mode()
    def flags(self, pictures: NDArray[np.uint8]) -> list[bool]:
        """Whether each of the pictures [n, height, width, 3] is flagged."""
        images = [Image.fromarray(picture) for picture in pictures]
        features = self._feature_extractor(images=images, return_tensors="pt").pixel_values
        seen = features.to(self._model.device, self._model.dtype)
        # The pictures given beside the features are those that it would blacken: we need its verdict only.
        _, flagged = self._model(clip_input=seen, images=[np.zeros(1) for _ in images])
        return [bool(flag) for flag in flagged]


def load_safety_checker(
    entry: CatalogEntry, device: torch.device, dtype: torch.dtype, report: Report, access: HubAccess
) -> SafetyChecker:
    """Load the checker that an entry names, from the hub if it is not on this disk.

    Args:
        entry: Its `safety_checker` is a hub id or an absolute folder.
        device: Where to.
        dtype: Of the image encoder.
        report: Told of a download as it goes on.
        access: How the hub is reached.

    Raises:
        ModelLoadError: It cannot be had, or is not complete; the message holds no path and no token.
    """
    from transformers import CLIPImageProcessorPil  # here, since most starts do without

    # Its repository may hold a .bin file only, which is read by torch's weights-only loader and runs no code.
    checker = dataclasses.replace(
        entry, set_name="safety", name="checker", source=entry.safety_checker, revision="", variant="",
        config="", family=SAFETY_CHECKER, allow_pickle=True, cpu_offload=False,
    )  # fmt: skip
    source = fetch(checker, report, access)
    check_room(checker, source, device, dtype)
    with reading(checker, access):
        model, info = StableDiffusionSafetyChecker.from_pretrained(
            str(source), dtype=dtype, local_files_only=True, output_loading_info=True
        )
        feature_extractor = CLIPImageProcessorPil.from_pretrained(str(source), local_files_only=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        # It would be filled up with random numbers, and let everything pass.
        raise ModelLoadError(f"{checker.id}: weights are missing, or do not fit.")
    return SafetyChecker(model.to(device), feature_extractor)


def blurred(pictures: torch.Tensor) -> torch.Tensor:
    """Previews [n, 3, height, width] in which nothing can be recognised: they are not checked."""
    coarse = F.adaptive_avg_pool2d(pictures, _BLURRED_SIDE)
    return F.interpolate(coarse, size=pictures.shape[-2:], mode="bilinear")
