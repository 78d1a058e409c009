"""Runs requests in this process: the bridge between the event loop and the engine's threads.

Imports no torch: the first thing the backend's thread does is import the engine, after the port is bound.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.backends.base import BackendStatus, Listener, ModelStatus, ModelWork
from app.catalog.entry import Catalog
from app.engine.request import FINAL_EVENTS, Aborted, Failed, GenerationEvent, GenerationRequest, Waiting
from app.errors import EngineDied, ModelNotReady, ShuttingDown

if TYPE_CHECKING:
    from app.engine.worker import EngineWorker

logger = logging.getLogger(__name__)

_SWITCH_SECONDS = 1e-4
_IMPORT_DELAY = 0.2
"""Seconds before torch is imported, so that the server is up and has answered its first probe."""


class LocalBackend:
    """Implements `app.backends.base.Backend` with one `EngineWorker` per device in this process.

    Args:
        catalog: All of its models are loaded, in order.
        device: 'auto', 'cpu', 'cuda:0' …, or several with commas between: models are placed by size, and each
            device has an engine thread of its own.
        dtype: 'auto', 'float32', 'bfloat16', 'float16'.
        threads: Of torch on the CPU; 0 means the physical cores.
        max_loaded: Most models on a device; 0 preloads all, else they are loaded on demand.
        preview_cache: Folder for fitted preview maps, or None.
        hub_token: For the hub, or None to take what the environment has.
        stop_timeout: Seconds that `stop` waits for the step in progress.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        max_loaded: int = 0,
        preview_cache: Path | None = None,
        hub_token: str | None = None,
        stop_timeout: float = 5.0,
    ) -> None:
        self._catalog = catalog
        self._device, self._dtype, self._threads = device, dtype, threads
        self._max_loaded = max_loaded
        self._preview_cache = preview_cache
        self._hub_token = hub_token
        self._stop_timeout = stop_timeout
        self._models = {entry.id: ModelStatus(entry.id, "waiting") for entry in catalog.entries}
        self._listeners: dict[str, Listener] = {}
        self._early: list[GenerationRequest] = []
        self._early_changes: list[tuple[str, bool]] = []
        self._loading_ended = False
        self._reporting = threading.Lock()
        self._workers: list[EngineWorker] = []
        self._worker_of: dict[str, EngineWorker] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starter: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lost: EngineDied | None = None

    async def start(self) -> None:
        """Begin to load in the background; returns before torch is imported."""
        self._loop = asyncio.get_running_loop()
        self._starter = threading.Thread(target=self._start_workers, name="darkroom-starter", daemon=True)
        self._starter.start()

    async def stop(self) -> None:
        """Fail what still runs with `ShuttingDown` and end the threads."""
        self._stopping.set()
        await asyncio.gather(
            *(asyncio.to_thread(worker.stop, self._stop_timeout) for worker in self._workers)
        )
        # The encoder's last events were posted before it ended; let them be delivered.
        await asyncio.sleep(0)
        stopped = ShuttingDown("The server is stopping.", retry_after=5)
        self._deliver([(request_id, Failed(stopped)) for request_id in list(self._listeners)])

    def add_request(self, request: GenerationRequest, listener: Listener) -> None:
        """Queue `request`; see `Backend.add_request`."""
        if self._stopping.is_set():
            raise ShuttingDown("The server is stopping.", retry_after=5)
        if self._lost is not None:
            raise self._lost
        model = self._models[request.model]
        if model.state in ("unloading", "unloaded") and not self._max_loaded:
            raise ModelNotReady(f"{request.model} is not loaded.", retry_after=60)
        if model.state == "failed":
            raise ModelNotReady(f"{request.model} could not be loaded: {model.error}")
        self._listeners[request.id] = listener
        if (worker := self._worker_of.get(request.model)) is not None:
            worker.add_request(request)
        else:
            self._early.append(request)
            self._loop_call(request.id, Waiting(len(self._early)))

    def abort_request(self, request_id: str) -> None:
        """Free its place within one step; see `Backend.abort_request`."""
        early = [request for request in self._early if request.id == request_id]
        for request in early:
            self._early.remove(request)
            self._loop_call(request_id, Aborted())
        if not early:
            # Only one of them knows it; asking all of them is simpler than remembering which.
            for worker in self._workers:
                worker.abort_request(request_id)

    def load_model(self, model: str) -> None:
        """Load or reload; see `Backend.load_model`."""
        # Told at once, so that whoever asked sees something happen; the engine's thread tells the rest.
        if self._lost is None and self._models[model].state in ("ready", "unloaded", "failed"):
            self._report(model, state="loading", progress=0.0, stage="waiting for its turn", error=None)
        if (worker := self._worker_of.get(model)) is not None:
            worker.load_model(model)
        else:
            self._early_changes.append((model, True))

    def unload_model(self, model: str) -> None:
        """Unload when its requests have finished; see `Backend.unload_model`."""
        if self._lost is None and self._models[model].state in ("ready", "failed"):
            self._report(model, state="unloading", progress=0.0, stage="", error=None)
        if (worker := self._worker_of.get(model)) is not None:
            worker.unload_model(model)
        else:
            self._early_changes.append((model, False))

    def status(self) -> BackendStatus:
        """A snapshot; see `BackendStatus`."""
        models = tuple(self._models[entry.id] for entry in self._catalog.entries)
        if not self._workers:
            return BackendStatus(
                self._device,
                models,
                waiting=len(self._early),
                alive=self._lost is None,
                loading_ended=self._loading_ended,
                on_demand=self._max_loaded > 0,
            )
        counters = [worker.engine.counters for worker in self._workers]
        # Copied, since the engines' threads go on adding to them.
        work = [item for one in counters for item in one.models.copy().items()]
        now = time.monotonic()
        busy = [now - since for one in counters if (since := one.busy_since) is not None]
        return BackendStatus(
            device=",".join(str(worker.device) for worker in self._workers),
            models=models,
            waiting=sum(worker.engine.waiting + worker.held for worker in self._workers),
            running=sum(worker.engine.running for worker in self._workers),
            alive=all(worker.alive for worker in self._workers) and self._lost is None,
            busy_seconds=max(busy, default=0.0),
            steps_total=sum(one.steps for one in counters),
            preview_seconds_total=sum(one.preview_seconds for one in counters)
            + sum(worker.encode_seconds for worker in self._workers),
            step_seconds_total=sum(one.step_seconds for one in counters),
            loading_ended=self._loading_ended,
            on_demand=self._max_loaded > 0,
            memory_bytes={str(worker.device): worker.memory_bytes for worker in self._workers},
            work={model: ModelWork(w.batches, w.rows, w.steps, w.step_seconds) for model, w in work},
        )

    def _start_workers(self) -> None:
        """The starter thread: import torch, make the workers, hand over what came in early."""
        if self._stopping.wait(_IMPORT_DELAY):
            return
        for entry in self._catalog.entries:
            self._report(entry.id, state="loading", progress=0.02, stage="starting torch")
        # A forward is hundreds of operations, and between any two the engine's thread needs the interpreter.
        # Python's usual 5 ms until a busy thread has to give it up cost 10% of the speed under 16 streams.
        sys.setswitchinterval(_SWITCH_SECONDS)
        # Image processors that nobody uses here complain of a missing torchvision when they are imported.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        try:
            workers = self._make_workers()
        except Exception as error:
            logger.critical("the engine cannot start", exc_info=error)
            self._lost = EngineDied("The engine could not start; the server's log says why.")
            for entry in self._catalog.entries:
                self._report(entry.id, state="failed", error=self._lost.message)
            self._post([(request.id, Failed(self._lost)) for request in self._early])
            return
        for worker in workers:
            worker.start()
        if self._loop is not None and not self._stopping.is_set():
            self._loop.call_soon_threadsafe(self._adopt, workers)
        if self._stopping.is_set():
            for worker in workers:
                worker.stop(self._stop_timeout)

    def _make_workers(self) -> list[EngineWorker]:
        """One worker per device, each with the models that are placed there, the default model first."""
        from app.engine.loading import estimated_bytes
        from app.engine.placement import place
        from app.engine.room import free_bytes
        from app.engine.worker import EngineWorker, WorkerOptions, resolve_device

        names = [name.strip() for name in self._device.split(",") if name.strip()] or ["auto"]
        devices = [resolve_device(name) for name in names]
        default = self._catalog.default
        entries = [default, *(entry for entry in self._catalog.entries if entry is not default)]
        placed = place(
            {entry.id: estimated_bytes(entry) for entry in entries}, [free_bytes(d) for d in devices]
        )
        return [
            EngineWorker(
                [entry for entry in entries if placed[entry.id] == index],
                WorkerOptions(
                    name, self._dtype, self._threads, self._max_loaded, self._preview_cache, self._hub_token
                ),
                self._post,
                self._report,
            )
            for index, name in enumerate(names)
        ]

    def _adopt(self, workers: list[EngineWorker]) -> None:
        self._workers = workers
        self._worker_of = {model: worker for worker in workers for model in worker.models}
        for request in self._early:
            self._worker_of[request.model].add_request(request)
        self._early.clear()
        for model, load in self._early_changes:
            (self.load_model if load else self.unload_model)(model)
        self._early_changes.clear()

    def _report(self, model: str, **changes: Any) -> None:
        """Called from any thread; one assignment, so readers see old or new."""
        with self._reporting:
            self._models[model] = dataclasses.replace(self._models[model], **changes)
            if not any(status.state in ("waiting", "loading") for status in self._models.values()):
                self._loading_ended = True

    def _post(self, events: list[tuple[str, GenerationEvent]]) -> None:
        """From any thread to the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._deliver, events)
            except RuntimeError:  # the loop closed in between: nobody is left to tell
                logger.debug("events after the end of the event loop")

    def _loop_call(self, request_id: str, event: GenerationEvent) -> None:
        """Deliver soon, never from inside `add_request`: callers see their own call return first."""
        asyncio.get_running_loop().call_soon(self._deliver, [(request_id, event)])

    def _deliver(self, events: list[tuple[str, GenerationEvent]]) -> None:
        for request_id, event in events:
            listener = self._listeners.get(request_id)
            if listener is None:
                continue
            if isinstance(event, FINAL_EVENTS):
                del self._listeners[request_id]
            try:
                listener(event)
            except Exception:
                # One listener's fault must not keep the events from the others.
                logger.exception("a listener failed")
