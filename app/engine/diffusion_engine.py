"""Step-level continuous batching: the unit of work is one denoising step of one batch, not one request.

The loop is schedule, run, postprocess. `DiffusionEngine.step` does one turn and is all there is to call; it
knows no threads, so that tests drive it by hand. `app.engine.worker` puts it into a thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from app.engine.batch_scheduler import BatchScheduler, Ticket
from app.engine.denoising import decode_pixels, denoise_step
from app.engine.faults import is_device_lost, is_out_of_memory, release_cached_memory
from app.engine.previews import PreviewMap, to_pixels
from app.engine.request import (
    Aborted,
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Progress,
    Started,
    Waiting,
)
from app.engine.running import RunningRequest
from app.engine.safety import SafetyChecker, blurred
from app.errors import DarkroomError, EngineDied, GenerationError, OutOfMemory, PictureWithheld
from app.families.base import Family

logger = logging.getLogger(__name__)

DECODE_PICTURES = 8
"""Final pictures decoded in one turn: enough to batch, few enough not to stall the steps of others."""


_WITHHELD = "The safety checker withheld the finished picture; try another seed, or other words."


@dataclass(slots=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        id: Full model id.
        family: The weights and what one forward is.
        preview_map: From latents to preview pixels.
        revision: Revision of the weights.
        batch_rows: Forward rows of one batch, measured at warm-up.
        step_seconds: Seconds of a full batch, measured at warm-up.
        decode_pictures: Pictures of one decode; shrinks when memory runs out.
        safety_checker: Sees every finished picture first; previews, which it does not see, are blurred.
    """

    id: str
    family: Family
    preview_map: PreviewMap
    revision: str
    batch_rows: int
    step_seconds: float
    decode_pictures: int = DECODE_PICTURES
    safety_checker: SafetyChecker | None = None


@dataclass(frozen=True, slots=True)
class Emission:
    """An event on its way out; a preview travels as pixels [height, width, 3], to be encoded elsewhere."""

    request_id: str
    event: GenerationEvent
    pixels: NDArray[np.uint8] | None = None


@dataclass(slots=True)
class ModelCounters:
    """What one model has done; `rows` are forward rows, `steps` are summed over requests."""

    batches: int = 0
    rows: int = 0
    steps: int = 0
    step_seconds: float = 0.0


@dataclass(slots=True)
class EngineCounters:
    """What the engine has done since it started; read by other threads, written by one."""

    steps: int = 0
    step_seconds: float = 0.0
    preview_seconds: float = 0.0
    batches: int = 0
    busy_since: float | None = None
    models: dict[str, ModelCounters] = field(default_factory=dict)


class DiffusionEngine:
    """Runs requests of several models, one step of one batch at a time. Not thread-safe.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: dict[str, LoadedModel] = {}
        self._requests: dict[str, GenerationRequest] = {}
        self._running: dict[str, RunningRequest] = {}
        self._to_decode: deque[str] = deque()
        self._batch_scheduler = BatchScheduler()
        self._places: dict[str, int] = {}
        self._outbox: list[Emission] = []
        self.counters = EngineCounters()

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._batch_scheduler.waiting

    @property
    def running(self) -> int:
        """Requests that have started and are not finished."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._requests)

    def add_model(self, model: LoadedModel) -> None:
        """Make a model available."""
        self._models[model.id] = model
        self._batch_scheduler.add_model(model.id, model.batch_rows, model.step_seconds)

    def remove_model(self, model: str) -> None:
        """Forget a model; none of its requests may be left (`busy_with`)."""
        self._models.pop(model, None)
        self._batch_scheduler.remove_model(model)

    def busy_with(self, model: str) -> bool:
        """Whether a request of the model waits, runs or is to be decoded."""
        return any(request.model == model for request in self._requests.values())

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request; it joins at the next step boundary that has room.

        Raises:
            KeyError: The model was not added.
        """
        shape = self._models[request.model].family.latent_shape(request.width, request.height)
        rows = 2 if request.guidance_scale > 1 else 1
        self._requests[request.id] = request
        self._batch_scheduler.add_request(Ticket(request.id, request.model, shape, rows))

    def abort_request(self, request_id: str) -> None:
        """Forget a request; its place is free at once. Unknown ids are ignored."""
        if request_id in self._requests:
            self._end(request_id, Aborted())

    def abort_all(self, error: DarkroomError) -> list[Emission]:
        """Fail every request with `error`; returns what is to be told."""
        for request_id in list(self._requests):
            self._end(request_id, Failed(error))
        return self.take_outbox()

    @torch.inference_mode()
    def step(self) -> list[Emission]:
        """One turn: let newcomers join, run one step of one batch, decode a few finished pictures.

        Returns:
            Everything to be told, in order.

        Raises:
            EngineDied: The device is lost. Every request has been failed; `abort_all` returns what is left.
        """
        self.counters.busy_since = self._clock()
        try:
            self._admit()
            batch = [self._running[ticket.id] for ticket in self._batch_scheduler.next_batch()]
            if batch:
                self._step_batch(batch)
            self._decode_some()
        finally:
            self.counters.busy_since = None
        return self.take_outbox()

    def take_outbox(self) -> list[Emission]:
        """What has not been told yet; empties it."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def _tell(self, request_id: str, event: GenerationEvent, pixels: NDArray[np.uint8] | None = None) -> None:
        self._outbox.append(Emission(request_id, event, pixels))

    def _end(self, request_id: str, event: GenerationEvent) -> None:
        """The one way out: frees the place, forgets everything, tells the final event."""
        self._batch_scheduler.remove(request_id)
        self._requests.pop(request_id, None)
        self._running.pop(request_id, None)
        self._places.pop(request_id, None)
        if request_id in self._to_decode:
            self._to_decode.remove(request_id)
        self._tell(request_id, event)

    def _admit(self) -> None:
        for ticket in self._batch_scheduler.admit():
            self._places.pop(ticket.id, None)
            self._start(self._requests[ticket.id])
        places = self._batch_scheduler.places()
        for request_id, place in places.items():
            if self._places.get(request_id) != place:
                self._tell(request_id, Waiting(place))
        self._places = places

    def _start(self, request: GenerationRequest) -> None:
        try:
            running = RunningRequest(request, self._models[request.model].family)
        except Exception as error:
            self._end(request.id, Failed(self._translate(error)))
            return
        self._running[request.id] = running
        notices: tuple[str, ...] = ()
        if running.cut:
            cut = running.cut if len(running.cut) <= 60 else running.cut[:60] + "…"
            notices = (f"The prompt is longer than this model reads; it did not see “{cut}”.",)
        self._tell(request.id, Started(running.total_steps, notices))

    def _step_batch(self, batch: list[RunningRequest]) -> None:
        model = self._models[batch[0].request.model]
        began = self._clock()
        survivors = self._denoise(model, batch)
        stepped = self._clock()
        self._batch_scheduler.charge(model.id, stepped - began)
        self.counters.batches += 1
        self.counters.steps += len(survivors)
        self.counters.step_seconds += stepped - began
        counters = self.counters.models.setdefault(model.id, ModelCounters())
        counters.batches += 1
        counters.rows += sum(2 if running.request.guidance_scale > 1 else 1 for running in batch)
        counters.steps += len(survivors)
        counters.step_seconds += stepped - began
        self._tell_progress(model, survivors)
        self.counters.preview_seconds += self._clock() - stepped
        for running in survivors:
            if running.done:
                # It needs no forward any more: its place is free while it waits to be decoded.
                self._batch_scheduler.remove(running.request.id)
                self._to_decode.append(running.request.id)

    def _denoise(self, model: LoadedModel, batch: list[RunningRequest]) -> list[RunningRequest]:
        """Advance the batch, in smaller parts if it does not fit or if one of it spoils it.

        Returns:
            Those that advanced; the others have been failed.
        """
        try:
            failures = denoise_step(model.family, batch)
            for request_id, failure in failures.items():
                self._end(request_id, Failed(self._translate(failure)))
            return [running for running in batch if running.request.id not in failures]
        except Exception as caught:
            # Only a description leaves this block: a held traceback would pin the memory of the forward.
            error = self._translate(caught)
        if isinstance(error, OutOfMemory):
            release_cached_memory()
            if len(batch) > 1:
                rows = self._batch_scheduler.shrink(model.id)
                logger.warning(
                    "out of memory at %d pictures of %s; batch is now %d rows", len(batch), model.id, rows
                )
        if len(batch) == 1:
            self._end(batch[0].request.id, Failed(error))
            return []
        middle = len(batch) // 2
        return self._denoise(model, batch[:middle]) + self._denoise(model, batch[middle:])

    def _tell_progress(self, model: LoadedModel, batch: list[RunningRequest]) -> None:
        shown = [running for running in batch if running.request.preview]
        pixels: dict[str, NDArray[np.uint8]] = {}
        if shown:
            denoised = torch.cat([running.denoised for running in shown])
            if model.safety_checker is None:
                pictures = model.preview_map.pixels(denoised)
            else:
                pictures = to_pixels(blurred(model.preview_map(denoised)))
            pixels = dict(zip((running.request.id for running in shown), pictures, strict=True))
        now = self._clock()
        for running in batch:
            seconds = now - running.started
            left = seconds / running.step * (running.total_steps - running.step)
            event = Progress(running.step, running.total_steps, None, seconds, left)
            self._tell(running.request.id, event, pixels.get(running.request.id))

    def _decode_some(self) -> None:
        if not self._to_decode:
            return
        first = self._running[self._to_decode[0]]
        model = self._models[first.request.model]
        batch = [
            self._running[request_id]
            for request_id in self._to_decode
            if self._running[request_id].request.model == model.id
            and self._running[request_id].latents.shape == first.latents.shape
        ][: model.decode_pictures]
        try:
            pixels = decode_pixels(model.family, torch.cat([running.latents for running in batch])).numpy()
            checker = model.safety_checker
            flagged = [False] * len(batch) if checker is None else checker.flags(pixels)
        except Exception as caught:
            error = self._translate(caught)
        else:
            for running, picture, withheld in zip(batch, pixels, flagged, strict=True):
                running.alone = running.alone and len(batch) == 1
                finished = self._finished(model, running, picture)
                self._end(running.request.id, Failed(PictureWithheld(_WITHHELD)) if withheld else finished)
            return
        if isinstance(error, OutOfMemory):
            release_cached_memory()
        if len(batch) == 1:
            self._end(first.request.id, Failed(error))
        else:
            model.decode_pictures = max(1, len(batch) // 2)

    def _finished(self, model: LoadedModel, running: RunningRequest, picture: NDArray[np.uint8]) -> Finished:
        return Finished(
            pixels=picture.tobytes(),
            width=picture.shape[1],
            height=picture.shape[0],
            total_steps=running.total_steps,
            seconds=self._clock() - running.started,
            dtype=str(model.family.dtype).removeprefix("torch."),
            device=str(model.family.device),
            alone=running.alone,
            revision=model.revision,
        )

    def _translate(self, error: Exception) -> DarkroomError:
        """A foreign error in our words; raises `EngineDied` for one that no retry can mend."""
        if isinstance(error, DarkroomError):
            return error
        if is_device_lost(error):
            raise EngineDied("The device stopped working; the server has to be restarted.") from error
        if is_out_of_memory(error):
            return OutOfMemory("There is not enough memory for this picture; try a smaller size.")
        logger.error("a generation failed", exc_info=error)
        return GenerationError("The picture could not be made; the server's log says why.")
