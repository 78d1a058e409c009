"""Telling apart what went wrong in a forward: no memory, a lost device, or one bad request."""

from __future__ import annotations

import gc

import torch

_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "defaultcpuallocator",
    "cublas_status_alloc_failed",
)
_DEVICE_WORDS = (
    "device-side assert",
    "cuda error",
    "cudnn_status_execution_failed",
    "unspecified launch failure",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or the host) ran out of memory; it can surface as a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device no longer works until the process is restarted."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _DEVICE_WORDS)


def release_cached_memory() -> None:
    """Give unused blocks back to the device, so that a smaller batch or another model finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
