"""Tensors that are equal between loaded models are held once.

Four models fine-tuned from one checkpoint differ in their UNet alone; text encoder and VAE are equal value by
value, whatever their files look like. So values are compared, not files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from app.families.base import Family


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of weights that one model holds.

    Attributes:
        alone: Held by this model and no other: what unloading it gives back.
        shared: Held together with others.
    """

    alone: int
    shared: int


@torch.inference_mode()
def share_equal_tensors(new: Family, loaded: Sequence[Family]) -> int:
    """Let `new` use the memory of tensors that are equal in a model that is already loaded.

    Only tensors of the same name, shape, precision and device are compared: within one architecture equal
    tensors have equal names, and comparing everything with everything would take minutes.

    Args:
        new: Loaded, not yet in use; its tensors are replaced.
        loaded: Models in use; they stay as they are.

    Returns:
        Bytes that have become free.
    """
    saved = 0
    candidates = [dict(family.named_weights()) for family in loaded]
    for name, tensor in new.named_weights():
        for weights in candidates:
            other = weights.get(name)
            if other is not None and _same(tensor, other):
                saved += 0 if other.data_ptr() == tensor.data_ptr() else tensor.untyped_storage().nbytes()
                tensor.data = other.data
                break
    return saved


def memory_use(families: Mapping[str, Family]) -> dict[str, MemoryUse]:
    """What each model holds alone and shared.

    Args:
        families: All loaded models by id.
    """
    holders: dict[tuple[str, int], set[str]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for model, family in families.items():
        for _, tensor in family.named_weights():
            storage = tensor.untyped_storage()
            key = (str(tensor.device), storage.data_ptr())
            holders.setdefault(key, set()).add(model)
            sizes[key] = storage.nbytes()
    use = {}
    for model in families:
        mine = [key for key, models in holders.items() if model in models]
        alone = sum(sizes[key] for key in mine if len(holders[key]) == 1)
        use[model] = MemoryUse(alone, sum(sizes[key] for key in mine) - alone)
    return use


def total_bytes(families: Iterable[Family]) -> int:
    """Bytes of weights that all models hold together; what several hold counts once."""
    sizes = {
        (str(tensor.device), storage.data_ptr()): storage.nbytes()
        for family in families
        for _, tensor in family.named_weights()
        for storage in [tensor.untyped_storage()]
    }
    return sum(sizes.values())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.stride() != b.stride():
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
