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
from app.engine.weight_files import SAFETY_CHECKER
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
    return sum(_part_bytes(source, dtype))


def check_room(entry: CatalogEntry, source: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model that does not fit.

    Offloaded to the host it needs room for its two largest parts on the device (the VAE stays there until the
    next picture, beside the UNet), and for all of it on the host.

    Raises:
        ModelLoadError: The message states what is needed and what is free.
    """
    sizes = _part_bytes(source, dtype, ("",) if entry.family == SAFETY_CHECKER else _PARTS)
    if entry.cpu_offload and device.type != "cpu":
        _check(entry, sum(sorted(sizes)[-2:]), device)
        device = torch.device("cpu")
    _check(entry, sum(sizes), device)


def _check(entry: CatalogEntry, needed: int, device: torch.device) -> None:
    free = free_bytes(device)
    if needed > free:
        raise ModelLoadError(
            f"{entry.id}: there is not enough memory for it: "
            f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
        )


def _part_bytes(source: Path, dtype: torch.dtype, parts: tuple[str, ...] = _PARTS) -> list[int]:
    if source.is_file():
        return [_file_bytes(source, dtype)]
    files = [[*(source / part).glob("*.safetensors"), *(source / part).glob("*.bin")] for part in parts]
    return [max((_file_bytes(file, dtype) for file in found), default=0) for found in files]


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
