"""How much memory a model needs, and how much there is.

Asked before loading: an operating system that runs out ends the whole process, models that serve included.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import psutil
import torch

from app.catalog.entry import CatalogEntry
from app.errors import ModelLoadError

_PARTS = ("unet", "vae", "text_encoder")
_FLOATS = {"F64", "F32", "F16", "BF16"}
_HEADER_LENGTH = struct.Struct("<Q")


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or on the host for the CPU."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def needed_bytes(source: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of a folder (or a single file) take in memory in a precision.

    Read from the headers of the safetensors files; a `.bin` file counts with its own size. Where a part lies
    there in several precisions, the largest counts once.

    Args:
        source: A folder in the diffusers layout, or a `.safetensors` file.
        dtype: Precision that it will be loaded in.
    """
    if source.is_file():
        return _file_bytes(source, dtype)
    parts = [[*(source / part).glob("*.safetensors"), *(source / part).glob("*.bin")] for part in _PARTS]
    return sum(max((_file_bytes(file, dtype) for file in files), default=0) for files in parts)


def check_room(entry: CatalogEntry, source: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that does not fit.

    Raises:
        ModelLoadError: The message states what is needed and what is free.
    """
    needed, free = needed_bytes(source, dtype), free_bytes(device)
    if needed > free:
        raise ModelLoadError(
            f"{entry.id}: there is not enough memory for it: "
            f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
        )


def _file_bytes(file: Path, dtype: torch.dtype) -> int:
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size
    with file.open("rb") as stream:
        start = stream.read(_HEADER_LENGTH.size)
        length = _HEADER_LENGTH.unpack(start)[0] if len(start) == _HEADER_LENGTH.size else size
        if length >= size:
            return size  # Damaged; loading will say so.
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return size
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        count = 1
        for side in tensor["shape"]:
            count *= side
        total += count * dtype.itemsize if tensor["dtype"] in _FLOATS else end - begin
    return total
