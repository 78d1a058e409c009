"""A backend without torch, for tests of queues, streams and HTTP. It obeys `app.backends.base.Backend`."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from app.backends.base import BackendStatus, Listener, ModelState, ModelStatus, ModelWork
from app.catalog.entry import Catalog, CatalogEntry, Defaults, Limits
from app.engine.request import (
    FINAL_EVENTS,
    Aborted,
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Progress,
    Started,
    Waiting,
)
from app.errors import GenerationError, ModelNotReady, OutOfMemory, ShuttingDown


def make_entry(name: str = "base", set_name: str = "builtin", max_steps: int = 150) -> CatalogEntry:
    """A model of the catalogue that no weights belong to."""
    return CatalogEntry(
        set_name=set_name,
        name=name,
        label=name.title(),
        best_for="Tests.",
        description="A model that is not there.",
        source=f"nowhere/{name}",
        revision="",
        family="stable_diffusion",
        dtype="float32",
        defaults=Defaults(steps=20, guidance_scale=5.0, eta=0.0, width=64, height=64, noise_scheduler="ddim"),
        limits=Limits(
            sizes=((64, 64), (64, 96)),
            size_multiple=8,
            min_size=32,
            max_size=128,
            max_pixels=8192,
            max_steps=max_steps,
        ),
        licence="MIT",
        demonstration=True,
        examples=("a red apple",),
    )


def make_catalog() -> Catalog:
    """Two models; the second allows fewer steps."""
    entries = (make_entry("base"), make_entry("quick", "extra", max_steps=30))
    return Catalog(entries=entries, default=entries[0])


def jpeg(shade: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A tiny real JPEG; equal shades give equal bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 64, 128)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class _Job:
    request: GenerationRequest
    listener: Listener
    aborted: bool = False
    begun: bool = False
    task: asyncio.Task[None] | None = field(default=None)


class FakeBackend:
    """Makes one-coloured pictures (red: the seed) at a given pace.

    Prompts that contain 'fail' fail at the second step, 'memory' runs out of memory, 'never' stops after one
    step until it is aborted, as a hung device would not.

    Args:
        catalog: Its models are ready unless told otherwise.
        step_seconds: Pace.
        slots: Size of the running set.
        on_demand: Models that are not loaded are loaded when they are asked for.
    """

    def __init__(
        self, catalog: Catalog, *, step_seconds: float = 0.0, slots: int = 4, on_demand: bool = False
    ) -> None:
        self.step_seconds = step_seconds
        self.on_demand = on_demand
        self.load_seconds = 0.0
        self.asked: list[tuple[str, str]] = []
        self.memory_bytes: dict[str, int] = {}
        self.work: dict[str, ModelWork] = {}
        self.slots = slots
        self.requests: list[GenerationRequest] = []
        self.steps_total = 0
        self.aborts = 0
        self.busy_seconds = 0.0
        self.alive = True
        self.stopped = False
        self.models = {
            entry.id: ModelStatus(entry.id, "ready", 1.0, device="fake") for entry in catalog.entries
        }
        self._waiting: list[_Job] = []
        self._running: dict[str, _Job] = {}

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Fail what runs."""
        self.stopped = True
        for job in [*self._waiting, *self._running.values()]:
            job.aborted = True
            job.listener(Failed(ShuttingDown("The server is stopping.")))
        tasks = [job.task for job in self._running.values() if job.task is not None]
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def set_model(self, model_id: str, state: ModelState, error: str | None = None) -> None:
        """Change the state of a model."""
        progress = 1.0 if state == "ready" else 0.4
        stage = "reading the weights"
        self.models[model_id] = ModelStatus(model_id, state, progress, stage=stage, error=error)
        if state == "ready":
            self._fill()

    def add_request(self, request: GenerationRequest, listener: Listener) -> None:
        """Queue it."""
        if self.stopped:
            raise ShuttingDown("The server is stopping.")
        state = self.models[request.model].state
        if state == "failed" or (state in ("unloading", "unloaded") and not self.on_demand):
            raise ModelNotReady("The model is not loaded.")
        self.requests.append(request)
        self._waiting.append(_Job(request, listener))
        if state == "unloaded":
            self.load_model(request.model)
        self._fill()

    def abort_request(self, request_id: str) -> None:
        """Free its place."""
        for job in [*self._waiting, *self._running.values()]:
            if job.request.id == request_id and not job.aborted:
                job.aborted = True
                self.aborts += 1
                if job.task is None:
                    self._waiting.remove(job)
                    asyncio.get_running_loop().call_soon(job.listener, Aborted())
                elif job.begun:
                    job.task.cancel()

    def load_model(self, model: str) -> None:
        """Takes `load_seconds`."""
        self.asked.append(("load", model))
        self.set_model(model, "loading")
        asyncio.get_running_loop().call_later(self.load_seconds, self._loaded, model)

    def _loaded(self, model: str) -> None:
        if self.models[model].state == "loading":
            self.set_model(model, "ready")

    def unload_model(self, model: str) -> None:
        """Its pictures are finished first."""
        self.asked.append(("unload", model))
        self.set_model(model, "unloading")
        self._drop_unloading()

    def _drop_unloading(self) -> None:
        busy = {job.request.model for job in [*self._waiting, *self._running.values()]}
        for model, status in self.models.items():
            if status.state == "unloading" and model not in busy:
                self.set_model(model, "unloaded")

    def status(self) -> BackendStatus:
        """A snapshot."""
        states = tuple(self.models.values())
        return BackendStatus(
            device="fake",
            models=states,
            waiting=len(self._waiting),
            running=len(self._running),
            alive=self.alive,
            busy_seconds=self.busy_seconds,
            steps_total=self.steps_total,
            loading_ended=all(state.state not in ("waiting", "loading") for state in states),
            on_demand=self.on_demand,
            memory_bytes=self.memory_bytes,
            work=self.work,
        )

    def _fill(self) -> None:
        while len(self._running) < self.slots:
            loaded = [
                job for job in self._waiting if self.models[job.request.model].state in ("ready", "unloading")
            ]
            if not loaded:
                break
            job = loaded[0]
            self._waiting.remove(job)
            self._running[job.request.id] = job
            job.task = asyncio.get_running_loop().create_task(self._run(job))
        for place, job in enumerate(self._waiting, start=1):
            job.listener(Waiting(place))

    async def _run(self, job: _Job) -> None:
        final: GenerationEvent = Aborted()
        job.begun = True
        try:
            if not job.aborted:
                final = await self._develop(job.request, job.listener)
        except asyncio.CancelledError:
            if self.stopped:
                return
        self._running.pop(job.request.id, None)
        assert isinstance(final, FINAL_EVENTS)
        job.listener(final)
        self._fill()
        self._drop_unloading()

    async def _develop(
        self, request: GenerationRequest, tell: Callable[[GenerationEvent], None]
    ) -> GenerationEvent:
        tell(Started(request.steps))
        for step in range(1, request.steps + 1):
            await asyncio.sleep(self.step_seconds)
            if "never" in request.prompt and step > 1:
                await asyncio.Event().wait()
            if "fail" in request.prompt and step == 2:
                return Failed(GenerationError("The numbers went astray."))
            if "memory" in request.prompt and step == 2:
                return Failed(OutOfMemory("Not even one picture of this size fits."))
            self.steps_total += 1
            preview = jpeg(step * 10) if request.preview else None
            tell(Progress(step, request.steps, preview, 0.1 * step, 0.1 * (request.steps - step)))
        pixels = bytes((request.seed % 256, 32, 64)) * (request.width * request.height)
        return Finished(
            pixels, request.width, request.height, request.steps, 1.25, "float32", "fake", True, "r1"
        )
