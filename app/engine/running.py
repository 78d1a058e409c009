"""A request while it is being made: its latents, its own noise, its own noise scheduler."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from app.engine.noise_schedulers import make_noise_scheduler
from app.engine.request import GenerationRequest, SeedMix
from app.families.base import Family


class RunningRequest:
    """State between the steps of one request.

    The noise comes from a CPU `torch.Generator` of its own, so that the picture depends neither on the device
    nor on company. Latents are kept in float32 whatever the model's precision: the noise scheduler's
    arithmetic costs nothing beside a forward, and half precision would lose there what the forward keeps.

    Args:
        request: The recipe.
        family: The model it runs on.
    """

    def __init__(self, request: GenerationRequest, family: Family) -> None:
        self.request = request
        self.guided = request.guidance_scale > 1
        self.started = time.monotonic()
        self.step = 0
        self.alone = True
        encoded = family.encode_prompt(request.prompt)
        self.cut = encoded.cut
        self.prompt_embeds = encoded.embeds
        if request.prompt_delta is not None:
            delta = torch.tensor(request.prompt_delta, dtype=torch.float32)
            self.prompt_embeds = encoded.embeds + delta.to(encoded.embeds)
        self.negative_prompt_embeds = (
            family.encode_prompt(request.negative_prompt).embeds if self.guided else None
        )
        self._noise_scheduler = make_noise_scheduler(request.noise_scheduler, family.noise_scheduler_config)
        self._noise_scheduler.set_timesteps(request.steps, device=family.device)
        self.timesteps: torch.Tensor = self._noise_scheduler.timesteps
        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = (1, *family.latent_shape(request.width, request.height))
        if request.initial_noise is None:
            noise = _noise(shape, generator)
        else:
            noise = mixed_noise(shape, request.initial_noise)
        self.latents = noise.to(family.device) * self._noise_scheduler.init_noise_sigma
        self.denoised = self.latents
        if request.step_seed is not None:
            generator = torch.Generator("cpu").manual_seed(request.step_seed)
        offered = {"eta": request.eta, "generator": generator}
        accepted = _step_parameters(type(self._noise_scheduler).step)
        self._step_arguments: dict[str, Any] = {k: v for k, v in offered.items() if k in accepted}

    @property
    def total_steps(self) -> int:
        """Number of timesteps that the noise scheduler really takes."""
        return len(self.timesteps)

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self.step >= self.total_steps

    @property
    def timestep(self) -> torch.Tensor:
        """The present timestep, 0-dimensional."""
        timestep: torch.Tensor = self.timesteps[self.step]
        return timestep

    def model_input(self) -> torch.Tensor:
        """The latents as the model wants them at the present timestep, [1, channels, height, width]."""
        scaled: torch.Tensor = self._noise_scheduler.scale_model_input(self.latents, self.timestep)
        return scaled

    def advance(self, noise_pred: torch.Tensor) -> None:
        """Take one step of the noise scheduler with the (guided) prediction, float32."""
        output = self._noise_scheduler.step(
            noise_pred, self.timestep, self.latents, **self._step_arguments, return_dict=True
        )
        self.latents = output.prev_sample
        self.denoised = self._denoised_of(output)
        self.step += 1

    def _denoised_of(self, output: Any) -> torch.Tensor:
        for attribute in ("pred_original_sample", "denoised"):
            denoised = getattr(output, attribute, None)
            if denoised is not None:
                return denoised  # type: ignore[no-any-return]
        # DPM++ keeps its predictions of x0 in a list, the newest last.
        return self._noise_scheduler.model_outputs[-1]  # type: ignore[no-any-return]


@cache
def _step_parameters(step: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(step).parameters)


def mixed_noise(shape: tuple[int, ...], mix: SeedMix) -> torch.Tensor:
    """Initial noise as a normalised combination of seeds, which is again a standard normal draw.

    z = Σ wᵢ·zᵢ / √(Σ wᵢ²) (COG, arXiv 2408.08558, for a Gaussian of mean 0).

    Args:
        shape: Of the latents, with the leading 1.
        mix: Seeds and weights.
    """
    total = torch.zeros(shape, dtype=torch.float32)
    for seed, weight in zip(mix.seeds, mix.weights, strict=True):
        total += weight * _noise(shape, torch.Generator("cpu").manual_seed(seed))
    return total / math.hypot(*mix.weights)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise: torch.Tensor = randn_tensor(shape, generator=generator, dtype=torch.float32)
    return noise
