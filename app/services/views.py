"""What the web layer and the pages render: plain, frozen, complete. Nothing here reaches for more data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from app.backends.base import ModelState
from app.catalog.entry import Defaults, Limits
from app.storage.records import GenerationState

HealthStatus = Literal["starting", "healthy", "degraded", "unhealthy"]
FINAL_STATES: frozenset[GenerationState] = frozenset({"done", "failed", "cancelled"})


# Compared by identity, so that one view can be the key of the message that is built from it once.
@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationView:
    """One picture at one moment.

    Attributes:
        id: Unguessable id.
        batch_id: The batch it belongs to.
        position: 0 … n−1 within the batch.
        state: waiting, running, done, failed or cancelled.
        model: Public name of the model: bare where that is unambiguous.
        model_id: Full id, `set/name`.
        prompt: Text as given; never markup.
        negative_prompt: Text as given.
        seed: 0 … 2^63−1.
        steps: Inference steps in all.
        step: Steps done, 0 … steps.
        place: Place in the queue, from 1; None unless it waits.
        seconds: Since the first step; the whole time once done.
        seconds_left: Estimate until the final picture; None when unknown.
        preview: Newest preview as JPEG bytes, or None.
        image: The final picture as PNG bytes; set only in the last view of a stream, else see `image_url`.
        image_url: Path of the final picture once it is kept, else None.
        image_bytes: Size of the final picture's file.
        width: Pixels.
        height: Pixels.
        guidance_scale: As asked or by default.
        eta: As asked or by default.
        noise_scheduler: Name.
        notices: Sentences for people (a cut prompt, unknown words, a picture that could not be kept).
        error_code: Stable code, if failed.
        error_message: Sentence for people, if failed or cancelled by us.
        vote: The viewer's thumb: 1, −1, or None.
        mine: Whether the viewer made it.
        created_at: UTC.
        finished_at: UTC, or None.
        revision: Revision of the weights, once done.
        dtype: Precision it was made in, once done.
        device: Device it was made on, once done.
        alone: Whether it was made alone, once done.
    """

    id: str
    batch_id: str
    position: int
    state: GenerationState
    model: str
    model_id: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    width: int
    height: int
    guidance_scale: float
    eta: float
    noise_scheduler: str
    created_at: datetime
    step: int = 0
    place: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    preview: bytes | None = None
    image: bytes | None = None
    image_url: str | None = None
    image_bytes: int | None = None
    notices: tuple[str, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    vote: int | None = None
    mine: bool = False
    finished_at: datetime | None = None
    revision: str = ""
    dtype: str = ""
    device: str = ""
    alone: bool = False

    @property
    def progress(self) -> float:
        """Per cent of the steps that are done, one decimal."""
        return round(100.0 * self.step / self.steps, 1)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL_STATES

    @property
    def download_name(self) -> str:
        """A file name to save it under, ASCII only: model, seed and the first words of the prompt."""
        words = "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in self.prompt).split()[:6])
        parts = [words[:48].strip("-").lower() or "picture", self.model.replace("/", "-"), str(self.seed)]
        return "-".join(parts) + ".png"


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchView:
    """The pictures of one request, by position."""

    id: str
    generations: tuple[GenerationView, ...]

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to any of them."""
        return all(generation.final for generation in self.generations)


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A model of the catalogue with its state right now.

    Attributes:
        id: Full id, `set/name`.
        name: Public name: bare where that is unambiguous.
        label: Name for people.
        best_for: One sentence.
        description: A little more.
        licence: Of the weights.
        demonstration: Shows how things work rather than what they can do.
        default: Whether it is the catalogue's default.
        examples: Prompts that it does well.
        defaults: What a request gets for the fields that it leaves out.
        limits: What it can do.
        state: waiting, loading, ready, unloading, unloaded or failed.
        progress: 0 … 1 while loading.
        stage: What it does now, in words.
        error: Why it failed, in words.
        dtype: Precision in use once ready.
        device: Device in use once ready.
        batch_size: Rows of one batch.
        step_seconds: Time of one guided step alone.
        memory_bytes: Weights held, alone and shared.
        shared_bytes: Those of them that other models hold as well.
        serves: Whether it can be asked now: it is ready, or is loaded when somebody asks.
        revision: Revision of the weights.
        precision_psnr: dB against float32; None in float32.
    """

    id: str
    name: str
    label: str
    best_for: str
    description: str
    licence: str
    demonstration: bool
    default: bool
    examples: tuple[str, ...]
    defaults: Defaults
    limits: Limits
    state: ModelState
    progress: float
    stage: str
    error: str | None
    dtype: str
    device: str
    batch_size: int
    step_seconds: float
    memory_bytes: int
    shared_bytes: int
    serves: bool
    revision: str
    precision_psnr: float | None

    @property
    def alone_bytes(self) -> int:
        """Weights that no other model holds: what unloading it gives back."""
        return self.memory_bytes - self.shared_bytes


@dataclass(frozen=True, kw_only=True)
class HealthView:
    """How the process is.

    Attributes:
        status: starting, healthy, degraded or unhealthy.
        reasons: Why it is not healthy, sentences for people.
        device: The device as a string; several are separated by commas.
        memory_bytes: Weights held, by device; those that several models hold are counted once.
        models: In the order of the catalogue.
        waiting: Requests that wait.
        running: Requests in the running set.
        queue_limit: Most requests that may wait or run.
        live: Whether the process should be left alive.
        ready: Whether it can serve.
        storage: Whether the database answers.
        safety_checker: Whether every finished picture is checked before it is shown.
        uptime_seconds: Since the process started.
        version: Of Darkroom.
    """

    status: HealthStatus
    reasons: tuple[str, ...]
    device: str
    memory_bytes: Mapping[str, int]
    models: tuple[ModelView, ...]
    waiting: int
    running: int
    queue_limit: int
    live: bool
    ready: bool
    storage: bool
    safety_checker: bool
    uptime_seconds: float
    version: str

    @property
    def models_loaded(self) -> tuple[str, ...]:
        """Public names of the models that serve."""
        return tuple(model.name for model in self.models if model.state == "ready")
