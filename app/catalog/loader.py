"""Reading catalogues: TOML files, checked strictly, with messages that name the file, the model and the key.

A file looks like `builtin.toml`: a `default`, and one table `[models.<name>]` for each model with tables
`defaults` and `limits` inside. The set is called as the file is, without `.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from app.catalog.entry import (
    PACKAGED,
    SHIPPED_CONFIGS,
    WEIGHTS_SUFFIX,
    Catalog,
    CatalogEntry,
    Defaults,
    Limits,
)
from app.errors import InvalidConfiguration

NoiseScheduler = Literal["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm"]
FamilyName = Literal["stable_diffusion"]

_FOLDER = Path(__file__).resolve().parent
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"([A-Za-z0-9][\w.-]{0,99})?", re.ASCII)
_PATHS = "'/', './' or '../'"
_PICKLE = re.compile(r"\.(ckpt|bin|pth?|pkl)$", re.I)
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
_Place = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000, pattern=r"^[^\x00-\x1f]*$")]
_Side = Annotated[int, Field(ge=8, le=8192)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _DefaultsTable(_Table):
    steps: int = Field(ge=1, le=150)
    guidance_scale: float = Field(ge=0)
    eta: float = Field(0.0, ge=0, le=1)
    width: _Side
    height: _Side
    noise_scheduler: NoiseScheduler


class _LimitsTable(_Table):
    sizes: list[Annotated[list[_Side], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    size_multiple: int = Field(ge=1, le=1024)
    min_size: _Side
    max_size: _Side
    max_pixels: int = Field(ge=64)
    max_steps: int = Field(150, ge=1, le=150)
    max_guidance_scale: float = Field(30.0, ge=1, le=100)


class _ModelTable(_Table):
    label: _Text
    best_for: _Text
    description: _Text
    source: _Place = Field(min_length=1)
    revision: str = ""
    family: FamilyName
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    defaults: _DefaultsTable
    limits: _LimitsTable
    licence: _Text
    demonstration: bool = False
    examples: list[_Text] = Field([], max_length=24)
    allow_pickle: bool = False
    variant: Literal["", "fp16"] = ""
    config: _Place = ""
    adapter: _Place = ""
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    cpu_offload: bool = False


class _SetTable(_Table):
    default: str
    models: dict[str, _ModelTable] = Field(min_length=1)


def known_sets() -> tuple[str, ...]:
    """Names of the sets that come with Darkroom."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_catalog(names_or_paths: Sequence[str]) -> Catalog:
    """Read sets by name ('builtin') or from a path that ends in `.toml`, in that order.

    Args:
        names_or_paths: At least one; the first one's default model is the default.

    Raises:
        InvalidConfiguration: A set is unknown or listed twice, or a file is wrong; names file, model and key.
    """
    if not names_or_paths:
        raise InvalidConfiguration("catalogue: at least one set is needed.")
    entries: list[CatalogEntry] = []
    defaults: list[CatalogEntry] = []
    for path in map(_find, names_or_paths):
        read, default = _read_set(path)
        if any(entry.set_name == path.stem for entry in entries):
            raise InvalidConfiguration(f"catalogue: the set {path.stem!r} is listed twice.")
        entries += read
        defaults.append(default)
    return Catalog(tuple(entries), defaults[0])


def checked_by(catalog: Catalog, source: str) -> Catalog:
    """The catalogue with a safety checker that sees every finished picture first.

    Args:
        catalog: As it was read.
        source: A hub id (owner/name), or a folder from the working directory; '' leaves everything as it is.

    Raises:
        InvalidConfiguration: The source is neither.
    """
    if not source:
        return catalog
    located = _located(Path.cwd() / "settings", source)
    if not Path(located).is_absolute() and not ("/" in located and _HUB_ID.fullmatch(located)):
        raise InvalidConfiguration(
            "DARKROOM_SAFETY_CHECKER: is neither 'on' nor 'off', no hub id (owner/name), and no path that "
            f"begins with {_PATHS}."
        )
    entries = tuple(replace(entry, safety_checker=located) for entry in catalog.entries)
    return Catalog(entries, entries[catalog.entries.index(catalog.default)])


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    if name_or_path in known_sets():
        return _FOLDER / f"{name_or_path}.toml"
    raise InvalidConfiguration(
        f"catalogue: unknown set {name_or_path[:80]!r}; known sets are {', '.join(known_sets())}, "
        "or give the path of a .toml file."
    )


def _read_set(path: Path) -> tuple[list[CatalogEntry], CatalogEntry]:
    if not _NAME.fullmatch(path.stem):
        raise InvalidConfiguration(
            f"{path}: a set's file needs a name of a-z, 0-9, '.', '_' and '-' (at most 63 characters)."
        )
    table = _read_table(path)
    entries = [_entry(path, name, model) for name, model in table.models.items()]
    for entry in entries:
        if entry.name == table.default:
            return entries, entry
    raise InvalidConfiguration(f"{path}: default: there is no model {table.default[:80]!r} in this file.")


def _read_table(path: Path) -> _SetTable:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return _SetTable.model_validate(content)
    except OSError as exc:
        raise InvalidConfiguration(f"{path}: cannot be read: {exc.strerror}.") from exc
    except ValidationError as exc:
        raise InvalidConfiguration(" ".join(f"{path}: {_sentence(error)}" for error in exc.errors())) from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise InvalidConfiguration(f"{path}: is not TOML: {exc}.") from exc


def _sentence(error: ErrorDetails) -> str:
    where = list(error["loc"])
    words = []
    if where[:1] == ["models"] and len(where) > 1:
        words.append(f"model {where[1]}")
        where = where[2:]
    if where:
        words.append(".".join(map(str, where)))
    reason = {"extra_forbidden": "is not a known key", "missing": "is missing"}.get(error["type"])
    if reason is None:
        reason = f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {_shown(error['input'])}"
    return f"{': '.join(words)}: {reason}." if words else f"{reason}."


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _entry(path: Path, name: str, model: _ModelTable) -> CatalogEntry:
    where = f"{path}: model {name}"
    if not _NAME.fullmatch(name):
        raise InvalidConfiguration(f"{where}: a name has a-z, 0-9, '.', '_' and '-', at most 63 characters.")
    entry = CatalogEntry(
        set_name=path.stem,
        name=name,
        label=model.label,
        best_for=model.best_for,
        description=model.description,
        source=_located(path, model.source),
        revision=model.revision,
        family=model.family,
        dtype=model.dtype,
        defaults=Defaults(**model.defaults.model_dump()),
        limits=_limits(model.limits),
        licence=model.licence,
        demonstration=model.demonstration,
        examples=tuple(model.examples),
        allow_pickle=model.allow_pickle,
        variant=model.variant,
        config=model.config if model.config in SHIPPED_CONFIGS else _located(path, model.config),
        adapter=_located(path, model.adapter),
        attention_slicing=model.attention_slicing,
        vae_slicing=model.vae_slicing,
        vae_tiling=model.vae_tiling,
        cpu_offload=model.cpu_offload,
    )
    _check_source(where, entry)
    _check_adapter(where, entry)
    _check_defaults(where, entry)
    _check_sizes(where, entry)
    return entry


def _limits(table: _LimitsTable) -> Limits:
    values = table.model_dump()
    values["sizes"] = tuple((width, height) for width, height in table.sizes)
    return Limits(**values)


def _located(path: Path, given: str) -> str:
    """A path given as './…' or '../…' is meant from the file that names it."""
    if given.startswith(("./", "../")):
        return str((path.resolve().parent / given).resolve())
    return str(Path(given).expanduser()) if given.startswith("~/") else given


def _check_source(where: str, entry: CatalogEntry) -> None:
    """The source is a folder, a hub id, or a single file with a configuration."""
    absolute = Path(entry.source).is_absolute()
    if entry.file is None and not absolute and not _HUB_ID.fullmatch(entry.source):
        raise InvalidConfiguration(
            f"{where}: source: is neither a hub id (owner/name) nor a path that begins with {_PATHS}."
        )
    if entry.file is not None and not absolute:
        raise InvalidConfiguration(f"{where}: source: a file's path begins with {_PATHS}.")
    if (
        absolute
        and entry.file is None
        and re.search(r"\.(ckpt|bin|pth?|pkl|safetensors)$", entry.source, re.I)
    ):
        raise InvalidConfiguration(f"{where}: source: of single files only {WEIGHTS_SUFFIX} is read.")
    if entry.file is not None and not entry.config:
        raise InvalidConfiguration(
            f"{where}: config: is missing: a single file needs {_quoted(SHIPPED_CONFIGS)} "
            "or a folder in the diffusers layout."
        )
    if entry.file is None and entry.config:
        raise InvalidConfiguration(f"{where}: config: is for single {WEIGHTS_SUFFIX} files only.")
    if entry.config and entry.config not in SHIPPED_CONFIGS and not Path(entry.config).is_absolute():
        raise InvalidConfiguration(
            f"{where}: config: is neither {_quoted(SHIPPED_CONFIGS)} nor a path that begins with {_PATHS}."
        )
    if not _REVISION.fullmatch(entry.revision):
        raise InvalidConfiguration(
            f"{where}: revision: is no name of a branch, tag or commit: {_shown(entry.revision)}."
        )


def _check_adapter(where: str, entry: CatalogEntry) -> None:
    """The adapter is a folder or a safetensors file, on this disk."""
    if not entry.adapter:
        return
    if not entry.adapter.startswith(PACKAGED) and not Path(entry.adapter).is_absolute():
        raise InvalidConfiguration(
            f"{where}: adapter: is no path of a folder or a {WEIGHTS_SUFFIX} file that begins with {_PATHS}."
        )
    if _PICKLE.search(entry.adapter):
        raise InvalidConfiguration(f"{where}: adapter: of single files only {WEIGHTS_SUFFIX} is read.")


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _check_defaults(where: str, entry: CatalogEntry) -> None:
    defaults, limits = entry.defaults, entry.limits
    if defaults.steps > limits.max_steps:
        raise InvalidConfiguration(f"{where}: defaults.steps: is above limits.max_steps, {limits.max_steps}.")
    if defaults.guidance_scale > limits.max_guidance_scale:
        raise InvalidConfiguration(
            f"{where}: defaults.guidance_scale: is above limits.max_guidance_scale, "
            f"{limits.max_guidance_scale}."
        )
    if limits.sizes[0] != (defaults.width, defaults.height):
        raise InvalidConfiguration(
            f"{where}: limits.sizes: the first is the default, {defaults.width} by {defaults.height}."
        )


def _check_sizes(where: str, entry: CatalogEntry) -> None:
    limits = entry.limits
    if limits.min_size > limits.max_size:
        raise InvalidConfiguration(f"{where}: limits.min_size: is above limits.max_size, {limits.max_size}.")
    for width, height in limits.sizes:
        for side in (width, height):
            if side % limits.size_multiple or not limits.min_size <= side <= limits.max_size:
                raise InvalidConfiguration(
                    f"{where}: limits.sizes: {side} is not a multiple of {limits.size_multiple} "
                    f"from {limits.min_size} to {limits.max_size}."
                )
        if width * height > limits.max_pixels:
            raise InvalidConfiguration(
                f"{where}: limits.sizes: {width} by {height} is above limits.max_pixels, {limits.max_pixels}."
            )
