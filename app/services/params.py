"""What a client may ask for, checked against the catalogue: every refusal names the field and the limit."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from app.catalog.entry import Catalog, CatalogEntry
from app.engine import noise_schedulers
from app.errors import InvalidRequest

MAX_PROMPT = 2000
MAX_SEED = 2**63 - 1
MAX_STEPS = 150
MAX_GUIDANCE_SCALE = 30.0
MAX_PICTURES = 8
# A drawn seed is short enough to be read aloud; a given one may use the whole range.
_DRAWN_SEEDS = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """What a client asks for; None leaves a field to the catalogue (the seed: to chance).

    Attributes:
        prompt: 1 … 2,000 characters, not only blanks.
        model: Full id or bare name.
        negative_prompt: At most 2,000 characters.
        seed: 0 … 2^63−1.
        steps: 1 … 150, and the model's and the noise scheduler's limits.
        guidance_scale: 0 … 30, and the model's limit; at most 1 is unguided.
        eta: 0 … 1, for DDIM.
        width: Pixels, by the model's limits.
        height: Pixels, by the model's limits.
        noise_scheduler: One of `app.engine.noise_schedulers.NAMES`.
        preview: Whether a preview is wanted at every step.
    """

    prompt: str
    model: str | None = None
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    width: int | None = None
    height: int | None = None
    noise_scheduler: str | None = None
    preview: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedParams:
    """The same with nothing left open, and all of it possible."""

    entry: CatalogEntry
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    eta: float
    width: int
    height: int
    noise_scheduler: str
    preview: bool


def resolve(params: GenerationParams, catalog: Catalog, *, n: int = 1) -> ResolvedParams:
    """Fill in the catalogue's values and check everything.

    Args:
        params: As asked.
        catalog: What can be generated with.
        n: Pictures, with seeds seed … seed+n−1.

    Raises:
        UnknownModel: The message names the known ones.
        InvalidRequest: `field` names the field, the message the limit.
    """
    _check_text("prompt", params.prompt, required=True)
    _check_text("negative_prompt", params.negative_prompt, required=False)
    _check_whole("n", n, 1, MAX_PICTURES)
    entry = catalog.resolve(params.model)
    defaults, limits = entry.defaults, entry.limits
    noise_scheduler = _known_noise_scheduler(params.noise_scheduler, defaults.noise_scheduler)
    width = defaults.width if params.width is None else params.width
    height = defaults.height if params.height is None else params.height
    _check_size(entry, width, height)
    return ResolvedParams(
        entry=entry,
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        seed=_seed(params.seed, n),
        steps=_steps(params.steps, entry, noise_scheduler),
        guidance_scale=_number(
            "guidance_scale",
            defaults.guidance_scale if params.guidance_scale is None else params.guidance_scale,
            min(MAX_GUIDANCE_SCALE, limits.max_guidance_scale),
        ),
        eta=_number("eta", defaults.eta if params.eta is None else params.eta, 1.0),
        width=width,
        height=height,
        noise_scheduler=noise_scheduler,
        preview=params.preview,
    )


def check_storable(field: str, text: str) -> None:
    """Refuse what no database and no UTF-8 stream can carry: NUL and lone surrogates.

    Raises:
        InvalidRequest: `field` has such a character.
    """
    if "\x00" in text:
        raise InvalidRequest(f"{field}: must not contain NUL characters", field=field)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{field}: must be valid Unicode, without lone surrogates", field=field)


def _check_text(field: str, text: str, *, required: bool) -> None:
    if len(text) > MAX_PROMPT:
        raise InvalidRequest(
            f"{field}: at most {MAX_PROMPT:,} characters, this one has {len(text):,}", field=field
        )
    if required and not text.strip():
        raise InvalidRequest(
            f"{field}: must have 1 to {MAX_PROMPT:,} characters, not only blanks", field=field
        )
    check_storable(field, text)


def _check_whole(field: str, value: int, low: int, high: int, why: str = "") -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{field}: must be a whole number from {low} to {high}{why}", field=field)


def _seed(seed: int | None, n: int) -> int:
    if seed is None:
        return secrets.randbelow(_DRAWN_SEEDS)
    _check_whole("seed", seed, 0, MAX_SEED)
    if seed + n - 1 > MAX_SEED:
        raise InvalidRequest(f"seed: seed + n - 1 must be at most {MAX_SEED}", field="seed")
    return seed


def _steps(steps: int | None, entry: CatalogEntry, noise_scheduler: str) -> int:
    most = min(MAX_STEPS, entry.limits.max_steps)
    why = f" for the model {entry.name}" if most < MAX_STEPS else ""
    if noise_schedulers.MAX_STEPS.get(noise_scheduler, MAX_STEPS) < most:
        most = noise_schedulers.MAX_STEPS[noise_scheduler]
        why = f" with the scheduler {noise_scheduler}"
    if steps is None:
        return min(entry.defaults.steps, most)
    _check_whole("steps", steps, 1, most, why)
    return steps


def _number(field: str, value: float, most: float) -> float:
    # NaN compares as false, so it is refused with the rest.
    if not (math.isfinite(value) and 0 <= value <= most):
        raise InvalidRequest(f"{field}: must be a number from 0 to {most:g}", field=field)
    return float(value)


def _known_noise_scheduler(name: str | None, default: str) -> str:
    if name is None:
        return default
    if name not in noise_schedulers.NAMES:
        known = ", ".join(noise_schedulers.NAMES)
        raise InvalidRequest(f"scheduler: unknown scheduler; known schedulers are {known}", field="scheduler")
    return name


def _check_size(entry: CatalogEntry, width: int, height: int) -> None:
    limits = entry.limits
    for field, value in (("width", width), ("height", height)):
        why = f" pixels for the model {entry.name}"
        _check_whole(field, value, limits.min_size, limits.max_size, why)
        if value % limits.size_multiple:
            raise InvalidRequest(f"{field}: must be a multiple of {limits.size_multiple}{why}", field=field)
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"width: width × height must be at most {limits.max_pixels:,} pixels "
            f"for the model {entry.name}, this is {width * height:,}",
            field="width",
        )
