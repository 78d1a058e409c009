"""The types of a catalogue: entries and how a name finds one. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.errors import UnknownModel

WEIGHTS_SUFFIX = ".safetensors"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers and PEFT call the weights in an adapter's folder."""
PACKAGED = "builtin/"
"""What the names of folders that come with Darkroom begin with."""
CONFIGS = Path(__file__).resolve().parent / "configs"
SHIPPED_CONFIGS = ("sd1", "sd2")
"""Architectures whose configuration (no weights) comes with Darkroom, for single files."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets for the fields that it leaves out."""

    steps: int
    guidance_scale: float
    eta: float
    width: int
    height: int
    noise_scheduler: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can do.

    Attributes:
        sizes: The sizes offered on the page, as (width, height), the default first.
        size_multiple: Width and height are multiples of it.
        min_size: Smallest width or height in pixels.
        max_size: Largest width or height in pixels.
        max_pixels: Largest width × height.
        max_steps: Most inference steps, at most 150; noise schedulers may allow fewer.
        max_guidance_scale: Largest guidance scale.
    """

    sizes: tuple[tuple[int, int], ...]
    size_multiple: int
    min_size: int
    max_size: int
    max_pixels: int
    max_steps: int = 150
    max_guidance_scale: float = 30.0


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model.

    Attributes:
        set_name: The set that lists it ('builtin').
        name: Bare name ('base').
        label: Name for people.
        best_for: What it is best for, one sentence.
        description: A little more, for the Models page.
        source: A folder in the diffusers layout, resolved against the package ('builtin/base'), an absolute
            folder, the absolute path of one `.safetensors` file, or a hub id.
        revision: Revision of the source; '' means what the folder holds.
        family: Architecture, 'stable_diffusion'.
        dtype: 'auto', 'float32', 'bfloat16' or 'float16'.
        defaults: See `Defaults`.
        limits: See `Limits`.
        licence: Of the weights.
        demonstration: A small model that shows how things work rather than what they can do.
        examples: Prompts that it does well.
        allow_pickle: Whether `.bin` files may be read (by torch's weights-only loader) where there is no
            safetensors file.
        variant: 'fp16' prefers weight files of that name; '' takes the plain ones.
        config: What a single file is: 'sd1', 'sd2' or a folder in the diffusers layout; '' for other sources.
        adapter: A LoRA that is merged into the source's weights: a folder (resolved against the package, or
            absolute) or the absolute path of a `.safetensors` file; '' for none.
        attention_slicing: Attention in slices: less memory, slower.
        vae_slicing: Pictures of a batch are decoded one by one.
        vae_tiling: Large pictures are decoded in tiles.
        cpu_offload: On a GPU, parts wait in main memory and visit the device when needed.
        safety_checker: Hub id or absolute folder of what sees every finished picture first; '' is none.
    """

    set_name: str
    name: str
    label: str
    best_for: str
    description: str
    source: str
    revision: str
    family: str
    dtype: str
    defaults: Defaults
    limits: Limits
    licence: str
    demonstration: bool = False
    examples: tuple[str, ...] = ()
    allow_pickle: bool = False
    variant: str = ""
    config: str = ""
    adapter: str = ""
    attention_slicing: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    cpu_offload: bool = False
    safety_checker: str = ""

    @property
    def id(self) -> str:
        """Full id, `set/name`."""
        return f"{self.set_name}/{self.name}"

    @property
    def folder(self) -> Path | None:
        """The folder of the weights if they are on this disk, else None (a hub id)."""
        packaged = Path(__file__).resolve().parent.parent / self.source
        if packaged.is_dir():
            return packaged
        given = Path(self.source)
        return given if given.is_absolute() and given.is_dir() else None

    @property
    def file(self) -> Path | None:
        """The single file that holds all weights if the source is one, whether it is there or not."""
        return Path(self.source) if self.source.endswith(WEIGHTS_SUFFIX) else None

    @property
    def from_hub(self) -> bool:
        """Whether the source is the id of a repository on the hub."""
        here = self.folder is not None or self.file is not None or Path(self.source).is_absolute()
        # A missing one of ours is not looked for elsewhere.
        return not here and not self.source.startswith(PACKAGED)

    @property
    def adapter_file(self) -> Path | None:
        """The file of the adapter's weights, whether it is there or not; None without an adapter."""
        if not self.adapter:
            return None
        given = Path(__file__).resolve().parent.parent / self.adapter  # an absolute path stays what it is
        return given if given.suffix == WEIGHTS_SUFFIX else given / ADAPTER_FILE

    @property
    def config_folder(self) -> Path | None:
        """The configuration of a single file: shipped with Darkroom, or the folder that the entry names."""
        if not self.config:
            return None
        return CONFIGS / self.config if self.config in SHIPPED_CONFIGS else Path(self.config)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries, in the order of the sets."""

    entries: tuple[CatalogEntry, ...]
    default: CatalogEntry

    def resolve(self, name: str | None) -> CatalogEntry:
        """The entry called `name`: a full id, or a bare name (the first listed set that has it).

        Args:
            name: 'builtin/base', 'base', or None for the default.

        Raises:
            UnknownModel: There is none; the message names the known ones.
        """
        if name is None:
            return self.default
        for entry in self.entries:
            if name in (entry.id, entry.name):
                return entry
        known = ", ".join(self.public_names())
        shown = name if len(name) <= 80 else name[:80] + "…"
        raise UnknownModel(f"model: unknown model {shown!r}; known models are {known}", field="model")

    def public_name(self, entry: CatalogEntry) -> str:
        """The bare name where it is unambiguous, else the full id."""
        return entry.name if self.resolve(entry.name) is entry else entry.id

    def public_names(self) -> list[str]:
        """Public names of all entries, in order."""
        return [self.public_name(entry) for entry in self.entries]
