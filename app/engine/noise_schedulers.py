"""Noise schedulers by name: one object per request, because they keep state.

Imports diffusers only when one is made, so that names and limits are known before torch is.
"""

from __future__ import annotations

import copy
from typing import Any

NAMES: dict[str, str] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_ancestral": "Euler ancestral",
    "dpmpp_2m": "DPM++ 2M",
    "lcm": "LCM",
}
"""Name on the wire to name for people."""

MAX_STEPS: dict[str, int] = {"lcm": 50}
"""Where a noise scheduler allows fewer steps than 150: LCM distils 50 (its `original_inference_steps`)."""

_CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}


def make_noise_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A fresh noise scheduler as diffusers makes it with ``from_config``.

    Args:
        name: One of `NAMES`.
        config: Configuration of the checkpoint's own noise scheduler.
    """
    key = (name, repr(sorted(config.items())))
    if key not in _prototypes:
        import diffusers

        _prototypes[key] = getattr(diffusers, _CLASSES[name]).from_config(config)
    return copy.deepcopy(_prototypes[key])


_prototypes: dict[tuple[str, str], Any] = {}
"""Never used themselves: `from_config` takes 2 ms of inspecting signatures, a copy a tenth of that."""
