"""Low-rank adapters (LoRA, arXiv 2106.09685) on a UNet: adding one, writing it, reading it.

By PEFT, in the layout that `StableDiffusionPipeline.load_lora_weights` reads.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from app.catalog.entry import ADAPTER_FILE

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2")
TARGETS = {"attention": ATTENTION, "all": (*ATTENTION, *CONVOLUTIONS)}
"""Which layers an adapter changes. Attention, as in the paper's code, learns from the fewest pictures: one
half of an epoch agrees with the other on where to move it, and not on where to move convolutions."""

RECORD = "training.json"
"""Beside the weights: how they came about."""


def add_adapter(unet: nn.Module, rank: int, targets: str, dtype: torch.dtype) -> list[nn.Parameter]:
    """Put a new adapter on a frozen UNet; it changes nothing yet, since its second matrices are zero.

    Args:
        unet: Its weights are frozen and may be in half precision; the adapter's are float32.
        rank: Of every layer's change; alpha equals it, so that the change is B·A itself.
        targets: A key of `TARGETS`.
        dtype: That autocast computes in.

    Returns:
        The adapter's weights.
    """
    unet.requires_grad_(False)
    unet.add_adapter(  # type: ignore[operator]
        LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(TARGETS[targets]), init_lora_weights="gaussian"
        )
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if dtype != torch.float32:
        for layer in _layers(unet):  # Autocast casts; PEFT would go through float32 and back.
            layer.cast_input_dtype_enabled = False
    return parameters


def _layers(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_adapter(unet: nn.Module) -> Iterator[None]:
    """The UNet as it was before the adapter."""
    for layer in _layers(unet):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _layers(unet):
            layer.enable_adapters(True)


def adapter_state(unet: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter's weights, by PEFT's names."""
    state = get_peft_model_state_dict(unet, adapter_name="default")
    return {name: value.detach().float().cpu().clone() for name, value in state.items()}


def set_adapter_state(unet: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `adapter_state` gave."""
    set_peft_model_state_dict(unet, state, adapter_name="default")


def scaled(state: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The adapter with its change times `strength`."""
    return {name: value * strength if ".lora_B." in name else value for name, value in state.items()}


def write_adapter(state: dict[str, Tensor], folder: Path, record: dict[str, object]) -> None:
    """Write an adapter in fp16, and how it came about; replaces what is there in one rename.

    Args:
        state: Of `adapter_state`.
        folder: For `pytorch_lora_weights.safetensors` and `training.json`.
        record: Anything that JSON can hold.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    # By PEFT's own names: diffusers' older ones know no convolutions, and mixed files are read by halves.
    layers = {name: value.half() for name, value in state.items()}
    StableDiffusionPipeline.save_lora_weights(new, unet_lora_layers=layers, weight_name=ADAPTER_FILE)
    (new / ADAPTER_FILE).chmod(0o644)  # It is written for its owner alone.
    (new / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
