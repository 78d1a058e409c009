"""Single `.safetensors` files of Stable Diffusion 1.x and 2.x, as other programs share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from app.catalog.entry import CONFIGS, CatalogEntry

_MERGES = CONFIGS / "clip" / "merges.txt"
_END = "<|endoftext|>"


def read_single_file(file: Path, entry: CatalogEntry, dtype: torch.dtype) -> Any:
    """The pipeline whose weights are all in `file`.

    Args:
        file: Weights under the names of the original implementation.
        entry: Its `config_folder` says what the parts look like.
        dtype: Of every part.
    """
    config = entry.config_folder
    given: dict[str, Any] = {}
    if config is not None and not (config / "tokenizer").is_dir():
        # SD 2.x was trained with texts filled up by '!', SD 1.x by the end token.
        given["tokenizer"] = clip_tokenizer("!" if entry.config == "sd2" else _END)
    return StableDiffusionPipeline.from_single_file(
        str(file),
        config=str(config),
        dtype=dtype,
        local_files_only=True,
        safety_checker=None,
        requires_safety_checker=False,
        feature_extractor=None,
        **given,
    )


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's own tokenizer: byte pairs in the order of `merges.txt`, cut at 77 tokens."""
    lines = _MERGES.read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", _END])}
    return CLIPTokenizer(vocabulary, merges, pad_token=pad_token, model_max_length=77)


def _byte_letters() -> list[str]:
    """A printable character for each byte, in CLIP's order: bytes that print, then the others from 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]
