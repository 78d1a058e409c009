"""One denoising step of one batch: gather, one forward, guidance, every request's own noise scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.engine.running import RunningRequest
from app.families.base import Family


@torch.inference_mode()
def denoise_step(family: Family, batch: Sequence[RunningRequest]) -> dict[str, Exception]:
    """Advance every request of the batch by one step.

    Rows of the forward are ordered as diffusers orders them: all unconditional rows, then the conditional
    ones; unguided requests add one conditional row and no unconditional one. Requests may differ in
    everything but the latent shape. Nothing of a request changes before the forward has succeeded.

    Args:
        family: The model.
        batch: At least one request, all of one latent shape and none of them done.

    Returns:
        By id, what went wrong in the noise schedulers of single requests; the others have advanced.

    Raises:
        Exception: The forward failed, and nobody has advanced.
    """
    guided = [running for running in batch if running.guided]
    ordered = guided + [running for running in batch if not running.guided]
    inputs = [running.model_input() for running in ordered]
    timesteps = [running.timestep.to(torch.float32) for running in ordered]
    rows = inputs[: len(guided)] + inputs
    row_timesteps = torch.stack(timesteps[: len(guided)] + timesteps)
    embeds = [r.negative_prompt_embeds for r in guided if r.negative_prompt_embeds is not None]
    embeds += [running.prompt_embeds for running in ordered]
    noise_pred = family.predict_noise(torch.cat(rows), row_timesteps, torch.cat(embeds)).to(torch.float32)
    predictions = _guide(noise_pred, [running.request.guidance_scale for running in guided])
    failures: dict[str, Exception] = {}
    for running, prediction in zip(ordered, predictions, strict=True):
        running.alone = running.alone and len(batch) == 1
        try:
            running.advance(prediction)
        except Exception as error:
            failures[running.request.id] = error
    return failures


def _guide(noise_pred: torch.Tensor, guidance_scales: list[float]) -> list[torch.Tensor]:
    """Classifier-free guidance, each row with its own scale; unguided rows pass through.

    Args:
        noise_pred: [g uncond, g cond, rest] × latents.
        guidance_scales: Of the g guided requests.

    Returns:
        One prediction [1, channels, height, width] per request: the g guided ones, then the rest.
    """
    n = len(guidance_scales)
    if n:
        scale = torch.tensor(guidance_scales, dtype=torch.float32, device=noise_pred.device)
        uncond, text = noise_pred[:n], noise_pred[n : 2 * n]
        guided = uncond + scale.view(-1, 1, 1, 1) * (text - uncond)
        noise_pred = torch.cat([guided, noise_pred[2 * n :]])
    return list(torch.split(noise_pred, 1))


@torch.inference_mode()
def decode_pixels(family: Family, latents: torch.Tensor) -> torch.Tensor:
    """Final pictures as diffusers' image processor rounds them.

    Args:
        family: The model.
        latents: [n, channels, height, width].

    Returns:
        [n, height, width, 3], uint8, on the CPU.
    """
    pictures = family.decode(latents)
    unit = (pictures * 0.5 + 0.5).clamp(0, 1)
    return (unit.cpu().permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
