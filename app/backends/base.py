"""The protocol between the services and whatever runs a request. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.engine.request import GenerationEvent, GenerationRequest

ModelState = Literal["waiting", "loading", "ready", "unloading", "unloaded", "failed"]
Listener = Callable[[GenerationEvent], None]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model of the catalogue, as it is right now.

    Attributes:
        id: Full id, `set/name`.
        state: waiting, loading, ready, unloading (its last requests finish), unloaded or failed.
        progress: 0 … 1 while loading, 1 when ready.
        stage: What it does now, in words for people ('reading the weights', 'warming up').
        error: Why it failed, in words for people; holds no path and no token.
        dtype: Precision in use once ready.
        device: Device in use once ready.
        batch_size: Forward rows of one batch, measured at warm-up; 0 until ready.
        step_seconds: Measured time of one guided step alone; 0 until ready.
        memory_bytes: Weights held, alone and shared.
        shared_bytes: Those of them that other models hold as well.
        revision: Revision of the weights.
        precision_psnr: dB between a warm-up picture in `dtype` and in float32; None in float32.
    """

    id: str
    state: ModelState
    progress: float = 0.0
    stage: str = ""
    error: str | None = None
    dtype: str = ""
    device: str = ""
    batch_size: int = 0
    step_seconds: float = 0.0
    memory_bytes: int = 0
    shared_bytes: int = 0
    revision: str = ""
    precision_psnr: float | None = None


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What was done with one model since start.

    Attributes:
        batches: Forwards, each one step of one batch.
        rows: Forward rows of all of them: rows / batches is the mean size of a batch.
        steps: Denoising steps, summed over requests.
        step_seconds: Time in these forwards.
    """

    batches: int = 0
    rows: int = 0
    steps: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A snapshot for `/health`, `/metrics` and the pages.

    Attributes:
        device: The device as a string ('cpu', 'cuda:0').
        models: In the order of the catalogue.
        waiting: Requests that wait.
        running: Requests in the running set.
        alive: False once the engine thread or the device is lost.
        busy_seconds: How long the present step has been running; large means hung.
        steps_total: Steps done since start, summed over requests.
        preview_seconds_total: Time spent on previews (map and encode) since start.
        step_seconds_total: Time spent in denoising steps since start.
        loading_ended: True once, for the first time, no model waited or was loading.
        on_demand: Whether a model that is not loaded is loaded when somebody asks for it.
        memory_bytes: Weights held, by device ('cuda:0'); those that several models hold are counted once.
        work: What was done, by model id; models without any may be missing.
    """

    device: str
    models: tuple[ModelStatus, ...]
    waiting: int = 0
    running: int = 0
    alive: bool = True
    busy_seconds: float = 0.0
    steps_total: int = 0
    preview_seconds_total: float = 0.0
    step_seconds_total: float = 0.0
    loading_ended: bool = False
    on_demand: bool = False
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    work: Mapping[str, ModelWork] = field(default_factory=dict)


class Backend(Protocol):
    """Runs requests. All methods are called on the event loop and return at once unless they are async."""

    async def start(self) -> None:
        """Begin to load in the background; returns before anything is loaded."""

    async def stop(self) -> None:
        """Fail what still runs with `ShuttingDown` and release everything."""

    def add_request(self, request: GenerationRequest, listener: Listener) -> None:
        """Queue `request`; its events reach `listener` on the event loop, the final one always.

        Raises:
            ModelNotReady: The model is not loaded (and will not be soon, if it failed).
            ShuttingDown: The backend is stopping.
        """

    def abort_request(self, request_id: str) -> None:
        """Free its place within one step; unknown ids are ignored. The listener gets `Aborted`."""

    def load_model(self, model: str) -> None:
        """Load a model that is unloaded or failed, or reload one that is ready; returns at once."""

    def unload_model(self, model: str) -> None:
        """Unload a model once its requests have finished; returns at once. New requests are refused."""

    def status(self) -> BackendStatus:
        """A snapshot; cheap enough for every probe."""
