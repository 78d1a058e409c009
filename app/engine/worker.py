"""torch's own threads: one loads, one denoises, one encodes previews. asyncio never waits for any of them.

::

    loader thread    weights and preview map ──┐ prepared models
    asyncio ── add, abort ──> engine thread  <─┘   warm-up, then one step after the other
    asyncio <── events ────── encoder thread <──── emissions (previews become JPEG here)
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from app.catalog.entry import CatalogEntry
from app.engine.diffusion_engine import DiffusionEngine, Emission, LoadedModel
from app.engine.faults import release_cached_memory
from app.engine.hub import HubAccess, Report, hub_access
from app.engine.loading import load_family, revision_of
from app.engine.previews import PreviewMap, encode_jpeg, preview_map_for
from app.engine.request import Aborted, Failed, GenerationEvent, GenerationRequest, Progress, Waiting
from app.engine.safety import SafetyChecker, load_safety_checker
from app.engine.sharing import memory_use, share_equal_tensors, total_bytes
from app.engine.warm_up import (
    MIN_PSNR,
    StepTimes,
    computes_bfloat16_natively,
    measure_steps,
    picture_psnr,
    speed_ratio,
    warm_up_picture,
)
from app.errors import DarkroomError, EngineDied, ModelLoadError, ModelNotReady, ShuttingDown
from app.families.stable_diffusion import StableDiffusion

logger = logging.getLogger(__name__)

Deliver = Callable[[list[tuple[str, GenerationEvent]]], None]
"""Takes events, in order, to whoever asked; called from the encoder thread."""

_ENCODER_BACKLOG = 4
"""Turns that may wait for the encoder; then the engine waits, rather than pile up previews nobody sees."""


class StatusReport(Protocol):
    """Told how a model is doing; the fields are those of `app.backends.base.ModelStatus`."""

    def __call__(self, model: str, **changes: Any) -> None:
        """Take note that these fields of the model's status have changed."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How to run.

    Attributes:
        device: 'auto', 'cpu', 'cuda:0' …
        dtype: 'auto', 'float32', 'bfloat16', 'float16'; overrides the entries' where it is not 'auto'.
        threads: Of torch on the CPU; 0 leaves torch's choice, the physical cores.
        max_loaded: Most models in memory at once; 0 means all, preloaded. Otherwise a request loads its
            model, and the one that was used least recently makes room.
        preview_cache: Folder for fitted preview maps, or None.
        hub_token: For the hub, or None to take what the environment has.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    max_loaded: int = 0
    preview_cache: Path | None = None
    hub_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Prepared:
    entry: CatalogEntry
    family: StableDiffusion
    preview_map: PreviewMap
    revision: str
    safety_checker: SafetyChecker | None


class _NotWanted(Exception):
    """The model was unloaded while it was being loaded."""


_Command = Callable[[], None]


class EngineWorker:
    """Owns a `DiffusionEngine` and the threads around it.

    Args:
        entries: Models to load, in order.
        options: See `WorkerOptions`.
        deliver: Takes events out.
        report: Told of every change of a model's state.
    """

    def __init__(
        self, entries: Sequence[CatalogEntry], options: WorkerOptions, deliver: Deliver, report: StatusReport
    ) -> None:
        self._entries = entries
        self._options = options
        self._deliver = deliver
        self._report = report
        self.device = resolve_device(options.device)
        self._engine = DiffusionEngine()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._outbox: queue.Queue[list[Emission] | None] = queue.Queue(_ENCODER_BACKLOG)
        self._stopping = threading.Event()
        self._jobs: queue.SimpleQueue[CatalogEntry | None] = queue.SimpleQueue()
        self._by_id = {entry.id: entry for entry in entries}
        # Known to the engine thread alone: what is in memory, on its way in, on its way out, or refused.
        self._families: dict[str, StableDiffusion] = {}
        self._loading: set[str] = set()
        self._wanted: deque[str] = deque()
        self._draining: set[str] = set()
        self._unwanted: set[str] = set()
        """Unloaded while they were being loaded; the loader thread looks here."""
        self._refused: dict[str, DarkroomError] = {}
        self._last_used: dict[str, float] = {}
        self._measured: dict[tuple[object, ...], tuple[str, torch.dtype, StepTimes | None]] = {}
        self._held: dict[str, list[GenerationRequest]] = {entry.id: [] for entry in entries}
        self.alive = True
        self.encode_seconds = 0.0
        self.memory_bytes = 0
        self._safety_checker: SafetyChecker | None = None
        """Loaded before the first model; the loader thread's until then."""
        self._threads = [
            threading.Thread(target=self._load_all, name="darkroom-loader", daemon=True),
            threading.Thread(target=self._run, name="darkroom-engine", daemon=True),
            threading.Thread(target=self._encode_all, name="darkroom-encoder", daemon=True),
        ]

    @property
    def models(self) -> list[str]:
        """Ids of the models that are placed here, loaded or not."""
        return [entry.id for entry in self._entries]

    @property
    def engine(self) -> DiffusionEngine:
        """The engine; other threads may read its counters, nothing else."""
        return self._engine

    @property
    def held(self) -> int:
        """Requests that wait for their model to be loaded."""
        return sum(len(requests) for requests in self._held.values())

    def start(self) -> None:
        """Start the threads and preload what there is room for; returns at once."""
        room = self._options.max_loaded or len(self._entries)
        for entry in self._entries[:room]:
            self.load_model(entry.id)
        for entry in self._entries[room:]:
            self._report(entry.id, state="unloaded", stage="loaded when it is asked for")
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> None:
        """End after the present step: fail what runs with `ShuttingDown`, wait for the threads.

        Args:
            timeout: Seconds to wait; a thread that hangs in the device is left behind (it is a daemon).
        """
        self._stopping.set()
        self._jobs.put(None)
        self._commands.put(lambda: None)
        deadline = time.monotonic() + timeout
        for thread in self._threads[1:]:
            thread.join(max(0.0, deadline - time.monotonic()))

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request; safe from any thread."""
        self._commands.put(lambda: self._add(request))

    def abort_request(self, request_id: str) -> None:
        """Abort a request; safe from any thread."""
        self._commands.put(lambda: self._abort(request_id))

    def load_model(self, model: str) -> None:
        """Load, or reload if it is there; safe from any thread."""
        self._commands.put(lambda: self._want(model))

    def unload_model(self, model: str) -> None:
        """Unload once its requests have finished; safe from any thread."""
        self._commands.put(lambda: self._unload(model))

    # The loader thread.

    def _load_all(self) -> None:
        while (entry := self._jobs.get()) is not None and not self._stopping.is_set():
            # In a thread that ends with its job, and its pool of OpenMP threads with it: while more of them
            # live than there are cores, those of the engine sleep at every barrier (a third of a small step).
            job = threading.Thread(target=self._load, args=(entry,), name="darkroom-loading", daemon=True)
            job.start()
            job.join()

    def _load(self, entry: CatalogEntry) -> None:
        try:
            access = hub_access(self._options.hub_token)
            fetched = self._fetch_report(entry)
            checker = self._checker_for(entry, fetched, access)
            family = load_family(entry, self.device, self._load_dtype(entry), fetched, access)
            self._check_wanted(entry.id)
            self._report(entry.id, progress=0.4, stage="fitting previews")
            preview_map = preview_map_for(
                family, entry.defaults.width, entry.defaults.height, self._options.preview_cache
            )
            prepared = _Prepared(entry, family, preview_map, revision_of(entry, access), checker)
            self._check_wanted(entry.id)
        except _NotWanted:
            self._commands.put(lambda: self._end_unwanted(entry.id))
        except Exception as error:
            failure = self._load_failure(entry, error)
            self._commands.put(lambda: self._give_up(entry.id, failure))
        else:
            self._report(entry.id, progress=0.6, stage="warming up")
            self._commands.put(lambda: self._warm_up(prepared))

    def _checker_for(self, entry: CatalogEntry, report: Report, access: HubAccess) -> SafetyChecker | None:
        """What looks at the model's pictures: loaded once, and no model without it where it is asked for."""
        if not entry.safety_checker:
            return None
        if self._safety_checker is None:
            # Its thresholds are fine: bfloat16 would be too coarse for them.
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
            self._safety_checker = load_safety_checker(entry, self.device, dtype, report, access)
        return self._safety_checker

    def _check_wanted(self, model: str) -> None:
        if model in self._unwanted and not self._held[model]:
            raise _NotWanted

    def _fetch_report(self, entry: CatalogEntry) -> Report:
        """Tells a download on the status, and every tenth of it in the log; ends it when the process ends."""
        logged = 0

        def report(fraction: float, words: str) -> None:
            nonlocal logged
            if self._stopping.is_set():
                raise ShuttingDown("The server is stopping.")
            self._check_wanted(entry.id)
            if entry.from_hub and int(fraction * 10) > logged:
                logged = int(fraction * 10)
                logger.info("%s: %s", entry.id, words)
            self._report(entry.id, progress=0.05 + 0.25 * fraction, stage=words)

        return report

    def _load_dtype(self, entry: CatalogEntry) -> torch.dtype:
        name = entry.dtype if self._options.dtype == "auto" else self._options.dtype
        if name == "auto":
            name = "float16" if self.device.type == "cuda" else "float32"
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    # The engine thread.

    def _run(self) -> None:
        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        try:
            while not self._stopping.is_set():
                self._obey(block=not self._engine.has_work)
                if self._engine.has_work and not self._stopping.is_set():
                    self._send(self._engine.step())
                self._drop_drained()
            self._end_all(ShuttingDown("The server is stopping.", retry_after=5))
        except Exception as error:
            logger.critical("the engine thread ends", exc_info=error)
            self.alive = False
            died = error if isinstance(error, EngineDied) else EngineDied("The engine stopped working.")
            self._end_all(died)
            self._refuse_for_ever(died)
        finally:
            self._outbox.put(None)

    def _obey(self, block: bool) -> None:
        """Carry out what has been asked since the last step; block until there is something if idle."""
        if block:
            self._commands.get()()
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _refuse_for_ever(self, died: DarkroomError) -> None:
        self._refused = {entry.id: died for entry in self._entries}
        for entry in self._entries:
            self._report(entry.id, state="failed", error=died.message)
        while not self._stopping.is_set():
            self._obey(block=True)

    def _end_all(self, error: DarkroomError) -> None:
        self._send(self._engine.abort_all(error))
        for model in self._held:
            self._fail_held(model, error)

    def _send(self, emissions: list[Emission]) -> None:
        if emissions:
            self._outbox.put(emissions)

    def _add(self, request: GenerationRequest) -> None:
        model = request.model
        self._last_used[model] = time.monotonic()
        if (refusal := self._refused.get(model)) is not None:
            self._send([Emission(request.id, Failed(refusal))])
        elif model in self._families and model not in self._draining:
            self._engine.add_request(request)
        else:
            self._held[model].append(request)
            self._want_after_all(model)
            self._send([Emission(request.id, Waiting(len(self._held[model])))])
            if model not in self._loading:
                self._want(model)

    def _abort(self, request_id: str) -> None:
        for requests in self._held.values():
            for request in [request for request in requests if request.id == request_id]:
                requests.remove(request)
                self._send([Emission(request_id, Aborted())])
        self._engine.abort_request(request_id)
        self._send(self._engine.take_outbox())

    def _fail_held(self, model: str, error: DarkroomError) -> None:
        self._send([Emission(request.id, Failed(error)) for request in self._held[model]])
        self._held[model] = []

    # Models come and go; all of this in the engine thread.

    def _want(self, model: str) -> None:
        """Load a model as soon as there is room; a loaded one is dropped first."""
        self._refused.pop(model, None)
        self._want_after_all(model)
        if model in self._loading or model in self._wanted:
            return
        self._wanted.append(model)
        if model in self._families:
            self._drain(model)
        else:
            self._report(model, state="waiting", progress=0.0, stage="waiting for its turn", error=None)
        self._start_wanted()

    def _start_wanted(self) -> None:
        """Load what is wanted and has room; where there is none, the least recently used one must leave."""
        for model in list(self._wanted):
            if model in self._families:
                continue
            room = self._options.max_loaded
            if room and len(self._families) + len(self._loading) >= room:
                idle = [loaded for loaded in self._families if loaded not in self._draining]
                if len(self._draining) < len(self._wanted) and idle:
                    self._drain(min(idle, key=lambda loaded: self._last_used.get(loaded, 0.0)))
                return
            self._wanted.remove(model)
            self._loading.add(model)
            self._report(model, state="loading", progress=0.05, stage="starting", error=None)
            self._jobs.put(self._by_id[model])

    def _unload(self, model: str) -> None:
        if model in self._wanted:
            self._wanted.remove(model)
        if not self._options.max_loaded:
            # Where models are loaded on demand, the next request brings it back; else it stays away.
            self._refused[model] = ModelNotReady(f"{model} is not loaded.", retry_after=60)
            self._fail_held(model, self._refused[model])
        if model in self._families:
            self._drain(model)
        elif model in self._loading:
            self._unwanted.add(model)
            self._report(model, state="unloading", stage="its loading is being stopped", error=None)
        else:
            self._report(model, state="unloaded", stage="", error=None)

    def _want_after_all(self, model: str) -> None:
        if model in self._unwanted:
            self._unwanted.discard(model)
            self._report(model, state="loading", error=None)

    def _end_unwanted(self, model: str) -> None:
        """Loading stopped early, unless somebody has asked for the model since: then it begins again."""
        self._loading.discard(model)
        if model in self._unwanted:
            self._unwanted.discard(model)
            self._report(model, state="unloaded", progress=0.0, stage="", error=None)
            release_cached_memory()
            self._start_wanted()
        else:
            self._want(model)

    def _drain(self, model: str) -> None:
        if model not in self._draining:
            self._draining.add(model)
            # A reload is no reason to refuse anybody: to those who ask, it is loading.
            state = "loading" if model in self._wanted else "unloading"
            self._report(model, state=state, progress=0.0, stage="its last pictures are being finished")
        self._drop_drained()

    def _drop_drained(self) -> None:
        """Forget the models that were to leave and have nothing left to do."""
        if not self._draining:
            return
        for model in [model for model in self._draining if not self._engine.busy_with(model)]:
            self._draining.discard(model)
            self._engine.remove_model(model)
            del self._families[model]
            release_cached_memory()
            gone = {"batch_size": 0, "step_seconds": 0.0, "memory_bytes": 0, "shared_bytes": 0}
            state = "waiting" if model in self._wanted else "unloaded"
            self._report(model, state=state, progress=0.0, stage="", dtype="", device="", **gone)
            self._report_memory()
            self._start_wanted()

    def _give_up(self, model: str, failure: DarkroomError) -> None:
        self._loading.discard(model)
        self._unwanted.discard(model)
        self._refused[model] = failure
        self._report(model, state="failed", error=failure.message, stage="")
        self._fail_held(model, ModelNotReady(failure.message))
        self._start_wanted()

    def _warm_up(self, prepared: _Prepared) -> None:
        entry = prepared.entry
        if entry.id in self._unwanted and not self._held[entry.id]:
            self._end_unwanted(entry.id)
            return
        try:
            family, times, psnr = self._best_precision(prepared)
            # Parts that wander between host and device lose what they share.
            if self.device.type == "cpu" or not entry.cpu_offload:
                share_equal_tensors(family, list(self._families.values()))
        except Exception as error:
            self._give_up(entry.id, self._load_failure(entry, error))
            return
        model = LoadedModel(
            entry.id,
            family,
            prepared.preview_map,
            prepared.revision,
            times.batch_rows,
            times.batch_seconds,
            safety_checker=prepared.safety_checker,
        )
        self._engine.add_model(model)
        self._loading.discard(entry.id)
        self._families[entry.id] = family
        self._last_used[entry.id] = time.monotonic()
        logger.info(
            "%s is ready: %s on %s, %d rows a batch, %.0f ms a guided step alone",
            *(entry.id, family.dtype, family.device, times.batch_rows, times.guided_step_seconds * 1e3),
        )
        self._report(
            entry.id,
            state="ready",
            progress=1.0,
            stage="",
            dtype=str(family.dtype).removeprefix("torch."),
            device=str(family.device),
            batch_size=times.batch_rows,
            step_seconds=times.guided_step_seconds,
            revision=prepared.revision,
            precision_psnr=psnr,
        )
        self._report_memory()
        held, self._held[entry.id] = self._held[entry.id], []
        for request in held:
            self._add(request)
        if entry.id in self._unwanted:  # Unloaded while those who waited for it had to be served.
            self._unwanted.discard(entry.id)
            self._drain(entry.id)
        self._start_wanted()

    def _report_memory(self) -> None:
        """What every loaded model holds changes whenever one comes or goes."""
        for model, use in memory_use(self._families).items():
            self._report(model, memory_bytes=use.alone + use.shared, shared_bytes=use.shared)
        checker = self._safety_checker
        self.memory_bytes = total_bytes(self._families.values()) + (checker.memory_bytes if checker else 0)

    def _best_precision(self, prepared: _Prepared) -> tuple[StableDiffusion, StepTimes, float | None]:
        """The model in the precision that serves best, what its steps cost, and its PSNR against float32.

        Models that differ in their adapter alone cost the same: the first of them is measured.
        """
        family, entry = prepared.family, prepared.entry
        alike = (entry.source, entry.revision, entry.variant, entry.dtype, entry.defaults, entry.limits)
        first, dtype, times = self._measured.get(alike, (entry.id, family.dtype, None))
        if times is not None and first != entry.id:
            reference = warm_up_picture(family, entry)
            if dtype == family.dtype:
                return family, times, None
            half = family.in_dtype(dtype)
            psnr = picture_psnr(warm_up_picture(half, entry), reference)
            if psnr >= MIN_PSNR:
                return half, times, psnr
        measured = self._measure(family, entry)
        self._measured[alike] = (entry.id, measured[0].dtype, measured[1])
        return measured

    def _measure(
        self, family: StableDiffusion, entry: CatalogEntry
    ) -> tuple[StableDiffusion, StepTimes, float | None]:
        reference = warm_up_picture(family, entry)
        asked = {entry.dtype, self._options.dtype}
        if asked != {"auto"} or self.device.type != "cpu" or not computes_bfloat16_natively():
            return family, measure_steps(family, entry), None
        half = family.in_dtype(torch.bfloat16)
        psnr = picture_psnr(warm_up_picture(half, entry), reference)
        ratio = speed_ratio(half, family, entry)
        logger.info(
            "%s in bfloat16: %.2f times as fast as in float32, %.1f dB from its picture",
            *(entry.id, ratio, psnr),
        )
        if psnr >= MIN_PSNR and ratio > 1:
            return half, measure_steps(half, entry), psnr
        return family, measure_steps(family, entry), None

    def _load_failure(self, entry: CatalogEntry, error: Exception) -> DarkroomError:
        if isinstance(error, DarkroomError):
            return error
        logger.error("preparing %s failed", entry.id, exc_info=error)
        return ModelLoadError(f"{entry.id}: it was loaded but does not run; the server's log says why.")

    # The encoder thread.

    def _encode_all(self) -> None:
        while (emissions := self._outbox.get()) is not None:
            began = time.perf_counter()
            events = [(emission.request_id, _encoded(emission)) for emission in emissions]
            self.encode_seconds += time.perf_counter() - began
            self._deliver(events)


def _encoded(emission: Emission) -> GenerationEvent:
    event = emission.event
    if isinstance(event, Progress) and emission.pixels is not None:
        return dataclasses.replace(event, preview=encode_jpeg(emission.pixels))
    return event


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` takes the first CUDA device if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
