"""Which files of a checkpoint in the diffusers layout are used, and whether they are whole. No torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection
from pathlib import Path

from app.catalog.entry import WEIGHTS_SUFFIX, CatalogEntry
from app.errors import ModelLoadError

INDEX = "model_index.json"
PIPELINES = {"stable_diffusion": "StableDiffusionPipeline"}
"""What `model_index.json` calls the pipelines that a family can load."""

SAFETY_CHECKER = "safety_checker"
"""Family of an entry that is no model, but what looks at finished pictures."""

_CHECKER = "StableDiffusionSafetyChecker"
_CHECKER_CONFIGS = ("config.json", "preprocessor_config.json")
_CONFIGS = (
    INDEX,
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WEIGHTS = {  # part: (stem of its safetensors files, stem of its .bin files)
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "": ("model", "pytorch_model"),  # the safety checker's own repository
}
_PARTS = ("unet", "vae", "text_encoder")
_LONGEST_HEADER = 100_000_000


class MissingFile(Exception):
    """A file that is needed is not there; the text is its name as people are told."""

    def __init__(self, name: str) -> None:
        super().__init__(told(name))


def told(name: str) -> str:
    """A file's name as people are told, without a path: 'config.json of the vae'."""
    part, _, file = name.rpartition("/")
    return f"{file} of the {part.replace('_', ' ')}" if part else file


def select_files(names: Collection[str], entry: CatalogEntry) -> tuple[str, ...]:
    """The files that loading the entry reads, small ones first, each part's weights once.

    Safetensors are preferred to `.bin`, the entry's variant to plain files. The safety checker, its feature
    extractor and files for other programs are left out.

    Args:
        names: All files of the checkpoint, with '/' between folders.
        entry: Says which variant is wanted and whether `.bin` is allowed.

    Raises:
        MissingFile: One that is needed is not among them.
        ModelLoadError: A part comes as `.bin` only, and the entry does not allow it.
    """
    known = set(names)
    if entry.family == SAFETY_CHECKER:
        chosen = [*_CHECKER_CONFIGS, *_weights(known, "", entry)]
    else:
        chosen = [*_CONFIGS, *_tokenizer(known)]
        for part in _PARTS:
            chosen += _weights(known, part, entry)
    for name in chosen:
        if name not in known:
            raise MissingFile(name)
    return tuple(chosen)


def index_of(entry: CatalogEntry) -> str:
    """The file that says of what architecture the checkpoint is."""
    return _CHECKER_CONFIGS[0] if entry.family == SAFETY_CHECKER else INDEX


def check_pipeline(index: Path, entry: CatalogEntry) -> None:
    """Refuse a checkpoint of another architecture before its weights are fetched.

    Raises:
        ModelLoadError: The index (see `index_of`) cannot be read, or names what the family cannot load.
    """
    checker = entry.family == SAFETY_CHECKER
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        found = content["architectures"][0] if checker else content["_class_name"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelLoadError(f"{entry.id}: {index.name} is corrupt.") from error
    wanted = _CHECKER if checker else PIPELINES[entry.family]
    if found != wanted:
        shown = re.sub(r"\W", "", str(found))[:60]
        raise ModelLoadError(f"{entry.id}: it is a {shown}; the family {entry.family} loads {wanted} only.")


def is_whole(file: Path, suffix: str = "") -> bool:
    """Whether a weight file's header fits its size, a JSON file is JSON, and any other has some content.

    Args:
        file: Must exist.
        suffix: What kind of file it is, if its name does not say so.
    """
    size = file.stat().st_size
    kind = suffix or file.suffix
    if kind not in (WEIGHTS_SUFFIX, ".json"):
        return size > 0
    try:
        if kind == ".json":
            return json.loads(file.read_bytes()) is not None
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _LONGEST_HEADER):
                return False
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(8 + length + max(ends, default=0) == size)


def _tokenizer(known: Collection[str]) -> list[str]:
    whole, halves = "tokenizer/tokenizer.json", ["tokenizer/vocab.json", "tokenizer/merges.txt"]
    extra = [f"tokenizer/{name}" for name in _TOKENIZER if f"tokenizer/{name}" in known]
    if whole not in known:
        return [*halves, *extra]
    return [whole, *(name for name in halves if name in known), *extra]


def _weights(known: Collection[str], part: str, entry: CatalogEntry) -> list[str]:
    variants = dict.fromkeys((entry.variant, ""))
    safe, pickled = _WEIGHTS[part]
    for stem, suffix in ((safe, "safetensors"), (pickled, "bin")):
        for variant in variants:
            found = _one_set(known, f"{part}/{stem}".lstrip("/"), variant, suffix)
            if found and suffix == "bin" and not entry.allow_pickle:
                raise ModelLoadError(
                    f"{entry.id}: its {part} comes as a .bin file only, which may hold code. To read it by "
                    f"torch's weights-only loader, which runs none, add the line allow_pickle = true under "
                    f"[models.{entry.name}] in {entry.set_name}.toml."
                )
            if found:
                return found
    raise MissingFile(f"{part}/{safe}.safetensors".lstrip("/"))


def _one_set(known: Collection[str], stem: str, variant: str, suffix: str) -> list[str]:
    """The single weight file of that kind, or the index and all shards, or nothing."""
    dotted = f".{variant}" if variant else ""
    single = f"{stem}{dotted}.{suffix}"
    if single in known:
        return [single]
    index = f"{stem}.{suffix}.index{dotted}.json"
    if index not in known:
        return []
    pattern = re.compile(
        rf"{re.escape(stem)}({re.escape(dotted)}-\d+-of-(\d+)|-\d+-of-(\d+){re.escape(dotted)})\.{suffix}"
    )
    shards = sorted(name for name in known if pattern.fullmatch(name))
    expected = max((int(number) for number in re.findall(r"-of-(\d+)", " ".join(shards))), default=1)
    if len(shards) < expected:
        raise MissingFile(f"{stem}{dotted}-…-of-{expected:05}.{suffix}")
    return [index, *shards]
