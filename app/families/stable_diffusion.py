"""Stable Diffusion 1.x and 2.x, and all that share their pipeline: CLIP text encoder, UNet, KL autoencoder.

The arithmetic is that of diffusers' `StableDiffusionPipeline.__call__`, split at its seams, so that a request
alone in float32 gets the same bits (`tests/test_parity.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from app.families.base import EncodedPrompt

_PROMPT_CACHE = 256


class StableDiffusion:
    """A loaded `StableDiffusionPipeline`, taken apart for the engine.

    Args:
        pipeline: A `StableDiffusionPipeline` in its dtype, without safety checker.
        device: Where it computes; its weights lie there as well, unless they are offloaded to the host.
    """

    def __init__(self, pipeline: Any, device: torch.device | None = None) -> None:
        self._device: torch.device = device or pipeline.unet.device
        self._pipeline = pipeline
        self._unet = pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False)
        self._text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self._tokenizer = pipeline.tokenizer
        # Asked for at every step, and diffusers walks through all modules to tell.
        self._dtype: torch.dtype = self._unet.dtype
        self.encode_prompt = lru_cache(maxsize=_PROMPT_CACHE)(self._encode_prompt)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of a forward."""
        return self._dtype

    @property
    def noise_scheduler_config(self) -> dict[str, Any]:
        """Configuration of the noise scheduler that the checkpoint came with."""
        return dict(self._pipeline.scheduler.config)

    def in_dtype(self, dtype: torch.dtype) -> StableDiffusion:
        """A copy of this model in another precision; this one stays as it is.

        Weights of convolutions go to channels-last, which half precision gains from on CPUs and GPUs. In
        float32 it would change the bits.
        """
        pipeline: Any = StableDiffusionPipeline(
            vae=_cast(self._vae, dtype),
            text_encoder=_cast(self._text_encoder, dtype),
            tokenizer=self._tokenizer,
            unet=_cast(self._unet, dtype),
            scheduler=self._pipeline.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        return StableDiffusion(pipeline, self._device)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of a picture in pixels."""
        factor = self._pipeline.vae_scale_factor
        return int(self._unet.config.in_channels), height // factor, width // factor

    def _encode_prompt(self, text: str) -> EncodedPrompt:
        limit = self._tokenizer.model_max_length
        ids = self._tokenizer(text).input_ids
        # The last of the `limit` tokens is the end mark; what stood from there on is never seen.
        cut = self._tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else ""
        seen = self._tokenizer(
            text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        mask = None
        if getattr(self._text_encoder.config, "use_attention_mask", False):
            mask = seen.attention_mask.to(self.device)
        embeds = self._text_encoder(seen.input_ids.to(self.device), attention_mask=mask)[0]
        return EncodedPrompt(embeds.to(dtype=self._text_encoder.dtype), cut)

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """One forward of the UNet; see `Family.predict_noise`."""
        noise_pred: torch.Tensor = self._unet(
            latents.to(self.dtype), timesteps, encoder_hidden_states=prompt_embeds, return_dict=False
        )[0]
        return noise_pred

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures from latents: [n, 3, height, width], −1 … 1 (not clamped)."""
        scaled = latents.to(self._vae.dtype) / self._vae.config.scaling_factor
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures

    def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents (scaled, the mode of the posterior) from pictures [n, 3, height, width] in −1 … 1."""
        pictures = pictures.to(self.device, self._vae.dtype)
        latents: torch.Tensor = self._vae.encode(pictures).latent_dist.mode()
        return latents * float(self._vae.config.scaling_factor)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and buffer held, by part and name; assigning `.data` replaces one."""
        parts = {"unet": self._unet, "vae": self._vae, "text_encoder": self._text_encoder}
        for part, module in parts.items():
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                yield f"{part}.{name}", tensor


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    # Past the override of diffusers, which warns of parts to keep in float32 even where there are none.
    converted: torch.nn.Module = torch.nn.Module.to(
        copy.deepcopy(module), dtype=dtype, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    return converted
