"""The final picture as a PNG that says how to make it again."""

from __future__ import annotations

import io
import json
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.engine import noise_schedulers
from app.engine.request import Finished
from app.storage.records import GenerationRecord

PARAMETERS_KEY = "darkroom"
_PNG_LEVEL = 4
"""Half the time of zlib's usual 6 for a file 4% larger."""


@cache
def software_versions() -> dict[str, str]:
    """Versions of what makes a picture, read from package metadata: nothing is imported for it."""
    return {package: _version(package) for package in ("darkroom", "torch", "diffusers", "transformers")}


def made_with(finished: Finished) -> dict[str, Any]:
    """Software, precision, device and company that made a picture."""
    return {
        **software_versions(),
        "dtype": finished.dtype,
        "device": finished.device,
        "alone": finished.alone,
    }


def picture_parameters(record: GenerationRecord) -> dict[str, Any]:
    """All it takes to make the picture of `record` again, as JSON values."""
    return {
        "generation_id": record.id,
        "model": record.model,
        "revision": record.revision,
        "prompt": record.prompt,
        "negative_prompt": record.negative_prompt,
        "seed": record.seed,
        "steps": record.steps,
        "guidance_scale": record.guidance_scale,
        "eta": record.eta,
        "width": record.width,
        "height": record.height,
        "scheduler": record.noise_scheduler,
        **({"recipe": record.recipe} if record.recipe else {}),
        "versions": {k: v for k, v in record.versions.items() if k not in ("dtype", "device", "alone")},
        "dtype": record.versions.get("dtype", ""),
        "device": record.versions.get("device", ""),
        "alone": record.versions.get("alone", False),
    }


def encode_png(pixels: bytes, record: GenerationRecord) -> bytes:
    """A PNG with two text chunks: `darkroom` (JSON) and `parameters` (as other tools write and read it).

    Args:
        pixels: RGB bytes, row by row, of `record`'s width and height.
        record: Complete, with revision and versions.
    """
    image = Image.frombytes("RGB", (record.width, record.height), pixels)
    chunks = PngInfo()
    chunks.add_text(PARAMETERS_KEY, json.dumps(picture_parameters(record)))
    chunks.add_itxt("parameters", _readable_parameters(record))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _version_of_checkout() if package == "darkroom" else "unknown"


def _version_of_checkout() -> str:
    """Darkroom's version where it runs from a checkout and was never installed."""
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _readable_parameters(record: GenerationRecord) -> str:
    negative = f"\nNegative prompt: {record.negative_prompt}" if record.negative_prompt else ""
    return (
        f"{record.prompt}{negative}\nSteps: {record.steps}, "
        f"Sampler: {noise_schedulers.NAMES[record.noise_scheduler]}, CFG scale: {record.guidance_scale:g}, "
        f"Seed: {record.seed}, Size: {record.width}x{record.height}, Model: {record.model}, "
        f"Version: Darkroom {record.versions.get('darkroom', 'unknown')}"
    )
