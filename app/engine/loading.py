"""From a catalogue entry to a loaded model: the real `from_pretrained` path, and errors in people's words."""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from app.catalog.entry import CatalogEntry
from app.engine.hub import HubAccess, Report, commit_of, discard_corrupt, fetch, hub_access
from app.engine.room import check_room
from app.engine.single_file import read_single_file
from app.engine.weight_files import is_whole
from app.errors import ModelLoadError
from app.families.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)

# Progress is told on /health and the page; bars of three libraries would tear the log apart.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

_ONE_AT_A_TIME = threading.Lock()
"""While weights are loaded, transformers makes every module of the process on the meta device."""

_CORRUPT = "a weight file is corrupt."
_CORRUPT_SIGNS = (
    "deserializ",
    "incomplete metadata",
    "failed finding central directory",
    "pytorchstreamreader",
)


def load_family(
    entry: CatalogEntry,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = lambda fraction, words: None,
    access: HubAccess | None = None,
) -> StableDiffusion:
    """Load the weights of an entry, from the hub if they are not on this disk.

    Args:
        entry: What to load.
        device: Where to.
        dtype: Stated explicitly for every part: loading would otherwise switch torch's default dtype under
            other threads, and half-precision files would give parts of different precision.
        report: Told of a download as it goes on.
        access: How the hub is reached; None as the environment says.

    Raises:
        ModelLoadError: The weights are missing, corrupt or out of reach; the message holds no path or token.
    """
    pipeline = load_pipeline(entry, device, dtype, report, access)
    _save_memory(pipeline, entry)
    return StableDiffusion(_placed(pipeline, entry, device), device)


def load_pipeline(
    entry: CatalogEntry,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = lambda fraction, words: None,
    access: HubAccess | None = None,
) -> Any:
    """The stock `StableDiffusionPipeline` of an entry on the host, its adapter merged into its weights.

    Arguments and errors are those of `load_family`; the device is where there must be room.
    """
    access = access or hub_access()
    source = fetch(entry, report, access)
    _check_adapter(entry)
    check_room(entry, source, device, dtype)
    with reading(entry, access):
        pipeline = _read(entry, source, dtype)
        _merge_adapter(pipeline, entry)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def reading(entry: CatalogEntry, access: HubAccess) -> Iterator[None]:
    """Around the reading of weights: one at a time, errors in people's words, corrupt downloads deleted.

    Raises:
        ModelLoadError: In place of whatever went wrong inside.
    """
    try:
        with _ONE_AT_A_TIME:
            yield
    except ModelLoadError:
        raise
    except Exception as error:
        logger.error("loading %s failed", entry.id, exc_info=error)
        reason = _reason(error)
        if entry.from_hub and reason == _CORRUPT and discard_corrupt(entry, access):
            reason += " It was deleted; try again to fetch it again."
        raise ModelLoadError(f"{entry.id}: {reason}") from error


def _check_adapter(entry: CatalogEntry) -> None:
    file = entry.adapter_file
    if file is not None and not file.is_file():
        raise ModelLoadError(f"{entry.id}: there is no such adapter.")
    if file is not None and not is_whole(file):
        raise ModelLoadError(f"{entry.id}: the adapter's file is corrupt, or no safetensors file.")


def _merge_adapter(pipeline: Any, entry: CatalogEntry) -> None:
    """Add the adapter's change to the weights themselves: a forward then costs what it costs without one.

    Raises:
        ModelLoadError: It is for another architecture, or none that diffusers reads.
    """
    file = entry.adapter_file
    if file is None:
        return
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # It warns of every part that the adapter does not change.
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        pipeline.fuse_lora(components=list(pipeline.get_list_adapters()))
        pipeline.unload_lora_weights()
    except Exception as error:
        logger.error("the adapter of %s cannot be merged", entry.id, exc_info=error)
        raise ModelLoadError(f"{entry.id}: the adapter does not fit this model.") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _placed(pipeline: Any, entry: CatalogEntry, device: torch.device) -> Any:
    """The pipeline on its device, or kept on the host with each part brought there when its turn comes."""
    if entry.cpu_offload and device.type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    if entry.cpu_offload:
        logger.info("%s: cpu_offload changes nothing here: it is in main memory anyway", entry.id)
    # float16 on a CPU is slow, not wrong, and was asked for: no need to be warned of it.
    return pipeline.to(device, silence_dtype_warnings=True)


def _save_memory(pipeline: Any, entry: CatalogEntry) -> None:
    if entry.attention_slicing:
        pipeline.enable_attention_slicing()
    if entry.vae_slicing:
        pipeline.vae.enable_slicing()
    if entry.vae_tiling:
        pipeline.vae.enable_tiling()


def _read(entry: CatalogEntry, source: Path, dtype: torch.dtype) -> Any:
    if entry.config_folder is not None:
        return read_single_file(source, entry, dtype)
    return StableDiffusionPipeline.from_pretrained(
        str(source),
        dtype=dtype,
        variant=entry.variant or None,
        # Parts that are not used, and not fetched.
        safety_checker=None,
        requires_safety_checker=False,
        feature_extractor=None,
        # Without safetensors, .bin files are read by torch's weights-only loader.
        use_safetensors=None if entry.allow_pickle else True,
        local_files_only=True,
    )


def revision_of(entry: CatalogEntry, access: HubAccess | None = None) -> str:
    """What pictures are stamped with: the entry's own revision, the hub's commit, or a hash of the weights.

    Args:
        entry: For a folder the first 12 hex digits of a SHA-256 over its safetensors files; with an adapter,
            of one over the source's revision and the adapter's file.
        access: How the hub is reached; None as the environment says.
    """
    source = _source_revision(entry, access)
    if entry.adapter_file is None:
        return source
    return hashlib.sha256(source.encode() + entry.adapter_file.read_bytes()).hexdigest()[:12]


def _source_revision(entry: CatalogEntry, access: HubAccess | None) -> str:
    if entry.revision:
        return entry.revision
    if entry.from_hub:
        return commit_of(entry, access or hub_access())[:12]
    digest = hashlib.sha256()
    root = entry.folder or Path(entry.source).parent
    for file in [entry.file] if entry.file else sorted(root.rglob("*.safetensors")):
        digest.update(file.relative_to(root).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:12]


def estimated_bytes(entry: CatalogEntry) -> int:
    """Bytes of an entry's weight files as they lie on this disk; 0 for a hub id."""
    if entry.file is not None:
        return entry.file.stat().st_size
    if entry.folder is None:
        return 0
    return sum(file.stat().st_size for file in entry.folder.rglob("*.safetensors"))


def _reason(error: Exception) -> str:
    """Why loading failed, without paths."""
    text = str(error).lower()
    if "safetensor" in type(error).__name__.lower() or any(sign in text for sign in _CORRUPT_SIGNS):
        return _CORRUPT
    if isinstance(error, OSError) and ("no file named" in text or "does not appear to have" in text):
        return "a weight file is missing."
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "a .bin file holds more than weights, and was not read."
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in text:
        return "there is not enough memory for it."
    return "the weights could not be loaded; the server's log says why."
