"""What is asked of the engine, and what it tells while it works. Imports no torch.

A `GenerationRequest` is one picture, with all it takes to make that picture again. The engine answers with
events, in this order: `Waiting` (any number), `Started`, `Progress` (one a step), and exactly one of the
final events `Finished`, `Failed`, `Aborted`, which is never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import DarkroomError


@dataclass(frozen=True, slots=True)
class SeedMix:
    """Initial noise as a stated combination of seeds, normalised so that it stays on the Gaussian shell.

    z = Σ wᵢ·zᵢ / √(Σ wᵢ²), with zᵢ the latents that seed i gives (COG, arXiv 2408.08558).

    Attributes:
        seeds: Seeds, each in 0 … 2^63−1.
        weights: As many weights, not all zero.
    """

    seeds: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One picture: the complete recipe, every value resolved (no defaults left open).

    Attributes:
        id: Unguessable id of the generation.
        model: Full model id, `set/name`.
        prompt: Text, 1 … 2,000 characters.
        negative_prompt: Text, may be empty.
        seed: 0 … 2^63−1; seeds the CPU generator of the initial noise (and of the step noise).
        steps: Number of inference steps.
        guidance_scale: Classifier-free guidance; at most 1 means unguided (one forward row, not two).
        eta: DDIM's eta, 0 … 1; ignored by noise schedulers without one.
        width: Pixels.
        height: Pixels.
        noise_scheduler: One of `app.engine.noise_schedulers.NAMES`.
        preview: Whether `Progress` events carry a preview.
        initial_noise: A combination of seeds in place of `seed` for the initial noise.
        prompt_delta: Values added to every token of the prompt's embedding (embedding width), or None.
        step_seed: A seed of its own for the step noise; None goes on with the generator of `seed`,
            as diffusers does.
    """

    id: str
    model: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    eta: float
    width: int
    height: int
    noise_scheduler: str
    preview: bool = True
    initial_noise: SeedMix | None = None
    prompt_delta: tuple[float, ...] | None = None
    step_seed: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The request waits; `place` counts from 1."""

    place: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request has joined the running set. `notices` are sentences for people (such as a cut prompt)."""

    total_steps: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One denoising step is done.

    Attributes:
        step: 1 … total_steps.
        total_steps: As in the request.
        preview: JPEG bytes of the predicted picture (`denoised`), or None if previews are off.
        seconds: Since the request started.
        seconds_left: Estimate until the final picture.
    """

    step: int
    total_steps: int
    preview: bytes | None
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The final picture.

    Attributes:
        pixels: RGB bytes, height × width × 3, row by row.
        width: Pixels.
        height: Pixels.
        total_steps: As in the request.
        seconds: From start to decoded picture.
        dtype: The precision it was made in ('float32', 'bfloat16', 'float16').
        device: The device it was made on.
        alone: Whether no other request ever shared a forward or a decode with it; only then is the picture
            bit for bit what diffusers' own pipeline makes.
        revision: Revision of the weights.
    """

    pixels: bytes
    width: int
    height: int
    total_steps: int
    seconds: float
    dtype: str
    device: str
    alone: bool
    revision: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error; others go on."""

    error: DarkroomError


@dataclass(frozen=True, slots=True)
class Aborted:
    """The request was aborted and has freed its place."""


GenerationEvent = Waiting | Started | Progress | Finished | Failed | Aborted
FINAL_EVENTS = (Finished, Failed, Aborted)
