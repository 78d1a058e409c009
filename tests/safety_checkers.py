"""Tiny safety checkers in the layout of the hub's own: the real class, with concepts that a test chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil

_SIDE = 32
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": 8,
    "projection_dim": 8,
}
_TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def make_checker(folder: Path, *, threshold: float, flagged: NDArray[np.uint8] | None = None) -> Path:
    """Write a checker into `folder` that flags pictures nearer to its first concept than `threshold`.

    Args:
        folder: Is made.
        threshold: Cosine; below −1 every picture is flagged, above 1 none.
        flagged: A picture [height, width, 3] that is the first concept; else it is arbitrary.
    """
    torch.manual_seed(0)
    config = CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=8)
    model = StableDiffusionSafetyChecker(config).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
    )
    with torch.no_grad():
        model.concept_embeds_weights.fill_(2.0)
        model.special_care_embeds_weights.fill_(2.0)
        model.concept_embeds_weights[0] = threshold
        if flagged is not None:
            seen = processor(images=[Image.fromarray(flagged)], return_tensors="pt").pixel_values
            model.concept_embeds[0] = model.visual_projection(model.vision_model(seen)[1])[0]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
