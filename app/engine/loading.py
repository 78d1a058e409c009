"""From a catalogue entry to a loaded model: the real `from_pretrained` path, and errors in people's words."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers.utils import logging as transformers_logging

from app.catalog.entry import CatalogEntry
from app.errors import ModelLoadError
from app.families.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)

# Progress is told on /health and the page; bars of three libraries would tear the log apart.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

_ONE_AT_A_TIME = threading.Lock()
"""While weights are loaded, transformers makes every module of the process on the meta device."""

Report = Callable[[float, str], None]
"""Told how far loading is (0 … 1) and what it does now."""


def load_family(entry: CatalogEntry, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Load the weights of an entry.

    Args:
        entry: Its `source` is a folder in the diffusers layout or a hub id.
        device: Where to.
        dtype: Stated explicitly for every part: loading would otherwise switch torch's default dtype under
            other threads, and half-precision files would give parts of different precision.

    Raises:
        ModelLoadError: The weights are missing, corrupt or out of reach; the message holds no path or token.
    """
    source = str(entry.folder or entry.source)
    try:
        with _ONE_AT_A_TIME:
            pipeline: Any = StableDiffusionPipeline.from_pretrained(
                source,
                revision=entry.revision or None,
                dtype=dtype,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
                local_files_only=entry.folder is not None,
            )
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise ModelLoadError(
            f"{entry.id}: the hub knows no repository {entry.source}, or you have no access to it."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{entry.id}: the hub cannot be reached and {entry.source} is not cached."
        ) from error
    except Exception as error:
        logger.error("loading %s failed", entry.id, exc_info=error)
        raise ModelLoadError(f"{entry.id}: {_reason(entry, error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return StableDiffusion(pipeline.to(device))


def revision_of(entry: CatalogEntry) -> str:
    """The revision that pictures are stamped with: the entry's own, or a hash of the folder's weights.

    Args:
        entry: For a folder the first 12 hex digits of a SHA-256 over its safetensors files.
    """
    if entry.revision or entry.folder is None:
        return entry.revision
    digest = hashlib.sha256()
    for file in sorted(entry.folder.rglob("*.safetensors")):
        digest.update(file.relative_to(entry.folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def estimated_bytes(entry: CatalogEntry) -> int:
    """Bytes of an entry's weight files as they lie on this disk; 0 for a hub id."""
    if entry.folder is None:
        return 0
    return sum(file.stat().st_size for file in entry.folder.rglob("*.safetensors"))


def _reason(entry: CatalogEntry, error: Exception) -> str:
    """Why loading failed, without paths."""
    folder = entry.folder
    if folder is None and ("/" not in entry.source or Path(entry.source).is_absolute()):
        return "there is no such folder."
    if folder is not None and not (folder / "model_index.json").is_file():
        return "the folder holds no model in the diffusers layout (model_index.json is missing)."
    text = str(error).lower()
    if "safetensor" in type(error).__name__.lower() or "deserializ" in text or "incomplete metadata" in text:
        return "a weight file is corrupt."
    if isinstance(error, OSError) and ("no file named" in text or "does not appear to have" in text):
        return "a weight file is missing."
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in text:
        return "there is not enough memory for it."
    return "the weights could not be loaded; the server's log says why."
