"""Runs requests in this process: the bridge between the event loop and the engine's threads.

Imports no torch: the first thing the backend's thread does is import the engine, after the port is bound.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.backends.base import BackendStatus, Listener, ModelStatus
from app.catalog.entry import Catalog
from app.engine.request import FINAL_EVENTS, Aborted, Failed, GenerationEvent, GenerationRequest, Waiting
from app.errors import EngineDied, ModelNotReady, ShuttingDown

if TYPE_CHECKING:
    from app.engine.worker import EngineWorker

logger = logging.getLogger(__name__)

_IMPORT_DELAY = 0.2
"""Seconds before torch is imported, so that the server is up and has answered its first probe."""


class LocalBackend:
    """Implements `app.backends.base.Backend` with an `EngineWorker` in this process.

    Args:
        catalog: All of its models are loaded, in order.
        device: 'auto', 'cpu', 'cuda:0' …
        dtype: 'auto', 'float32', 'bfloat16', 'float16'.
        threads: Of torch on the CPU; 0 means the physical cores.
        max_loaded: Most models in memory; 0 preloads all, else they are loaded on demand.
        preview_cache: Folder for fitted preview maps, or None.
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
        stop_timeout: float = 5.0,
    ) -> None:
        self._catalog = catalog
        self._device, self._dtype, self._threads = device, dtype, threads
        self._max_loaded = max_loaded
        self._preview_cache = preview_cache
        self._stop_timeout = stop_timeout
        self._models = {entry.id: ModelStatus(entry.id, "waiting") for entry in catalog.entries}
        self._listeners: dict[str, Listener] = {}
        self._early: list[GenerationRequest] = []
        self._worker: EngineWorker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starter: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lost: EngineDied | None = None

    async def start(self) -> None:
        """Begin to load in the background; returns before torch is imported."""
        self._loop = asyncio.get_running_loop()
        self._starter = threading.Thread(target=self._start_worker, name="darkroom-starter", daemon=True)
        self._starter.start()

    async def stop(self) -> None:
        """Fail what still runs with `ShuttingDown` and end the threads."""
        self._stopping.set()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop, self._stop_timeout)
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
        if self._worker is not None:
            self._worker.add_request(request)
        else:
            self._early.append(request)
            self._loop_call(request.id, Waiting(len(self._early)))

    def abort_request(self, request_id: str) -> None:
        """Free its place within one step; see `Backend.abort_request`."""
        early = [request for request in self._early if request.id == request_id]
        for request in early:
            self._early.remove(request)
            self._loop_call(request_id, Aborted())
        if not early and self._worker is not None:
            self._worker.abort_request(request_id)

    def load_model(self, model: str) -> None:
        """Load or reload; see `Backend.load_model`."""
        if self._worker is not None:
            self._worker.load_model(model)

    def unload_model(self, model: str) -> None:
        """Unload when its requests have finished; see `Backend.unload_model`."""
        if self._worker is not None:
            self._worker.unload_model(model)

    def status(self) -> BackendStatus:
        """A snapshot; see `BackendStatus`."""
        models = tuple(self._models[entry.id] for entry in self._catalog.entries)
        ended = all(model.state not in ("waiting", "loading") for model in models)
        worker = self._worker
        if worker is None:
            return BackendStatus(
                self._device,
                models,
                waiting=len(self._early),
                alive=self._lost is None,
                loading_ended=ended,
            )
        counters = worker.engine.counters
        busy_since = counters.busy_since
        return BackendStatus(
            device=str(worker.device),
            models=models,
            waiting=worker.engine.waiting + worker.held,
            running=worker.engine.running,
            alive=worker.alive and self._lost is None,
            busy_seconds=time.monotonic() - busy_since if busy_since is not None else 0.0,
            steps_total=counters.steps,
            preview_seconds_total=counters.preview_seconds + worker.encode_seconds,
            step_seconds_total=counters.step_seconds,
            loading_ended=ended,
        )

    def _start_worker(self) -> None:
        """The starter thread: import torch, make the worker, hand over what came in early."""
        if self._stopping.wait(_IMPORT_DELAY):
            return
        for entry in self._catalog.entries:
            self._report(entry.id, state="loading", progress=0.02, stage="starting torch")
        # Image processors that nobody uses here complain of a missing torchvision when they are imported.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        try:
            from app.engine.worker import EngineWorker, WorkerOptions

            options = WorkerOptions(
                self._device, self._dtype, self._threads, self._max_loaded, self._preview_cache
            )
            # The default model first: the service is ready once it is.
            default = self._catalog.default
            entries = [default, *(entry for entry in self._catalog.entries if entry is not default)]
            worker = EngineWorker(entries, options, self._post, self._report)
        except Exception as error:
            logger.critical("the engine cannot start", exc_info=error)
            self._lost = EngineDied("The engine could not start; the server's log says why.")
            for entry in self._catalog.entries:
                self._report(entry.id, state="failed", error=self._lost.message)
            self._post([(request.id, Failed(self._lost)) for request in self._early])
            return
        worker.start()
        if self._loop is not None and not self._stopping.is_set():
            self._loop.call_soon_threadsafe(self._adopt, worker)
        if self._stopping.is_set():
            worker.stop(self._stop_timeout)

    def _adopt(self, worker: EngineWorker) -> None:
        self._worker = worker
        for request in self._early:
            worker.add_request(request)
        self._early.clear()

    def _report(self, model: str, **changes: Any) -> None:
        """Called from the loader and engine threads; one assignment, so readers see old or new."""
        self._models[model] = dataclasses.replace(self._models[model], **changes)

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
