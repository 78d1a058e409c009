"""The bridge between the event loop and the engine's threads, with a real tiny model behind it."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.backends.local import LocalBackend
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
)
from app.errors import ModelLoadError, ModelNotReady, ShuttingDown
from tests.tiny import make_pipeline

pytestmark = pytest.mark.usefixtures("short_warm_up")


def make_entry(name: str, source: Path) -> CatalogEntry:
    """An entry for a tiny checkpoint on disk."""
    return CatalogEntry(
        set_name="test",
        name=name,
        label=name,
        best_for="tests",
        description="",
        source=str(source),
        revision="",
        family="stable_diffusion",
        dtype="float32",
        defaults=Defaults(4, 3.0, 0.0, 64, 64, "ddim"),
        limits=Limits(((64, 64),), 8, 16, 64, 4096),
        licence="MIT",
    )


def make_request(request_id: str, model: str = "test/good", steps: int = 4) -> GenerationRequest:
    """A small guided request."""
    return GenerationRequest(
        id=request_id,
        model=model,
        prompt="a red cat",
        negative_prompt="",
        seed=1,
        steps=steps,
        guidance_scale=3.0,
        eta=0.0,
        width=64,
        height=64,
        noise_scheduler="ddim",
    )


class Heard:
    """A listener that remembers, and lets a test wait for the final event."""

    def __init__(self) -> None:
        self.events: list[GenerationEvent] = []
        self.ended = asyncio.Event()

    def __call__(self, event: GenerationEvent) -> None:
        """Take one event."""
        assert not self.ended.is_set(), "an event after the final one"
        self.events.append(event)
        if isinstance(event, FINAL_EVENTS):
            self.ended.set()

    async def final(self) -> GenerationEvent:
        """The final event, once it is there."""
        await asyncio.wait_for(self.ended.wait(), 60)
        return self.events[-1]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A good model, one with a corrupt weight file, and one whose folder is gone."""
    good = make_pipeline(tmp_path_factory.mktemp("good"))
    corrupt = make_pipeline(tmp_path_factory.mktemp("corrupt"))
    (corrupt / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10" * 100)
    entries = (
        make_entry("good", good),
        make_entry("corrupt", corrupt),
        make_entry("gone", good.parent / "nowhere"),
    )
    return Catalog(entries, entries[0])


@asynccontextmanager
async def running(catalog: Catalog) -> AsyncIterator[LocalBackend]:
    """A started backend; stopped at the end."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    for _ in range(1200):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen")


async def test_a_request_made_before_torch_is_there_is_kept(catalog: Catalog) -> None:
    """What is asked while the server starts waits for the model: its place, its steps, its end are told."""
    async with running(catalog) as backend:
        heard = Heard()
        backend.add_request(make_request("early"), heard)
        finished = await heard.final()
        assert isinstance(finished, Finished)
        assert len(finished.pixels) == 64 * 64 * 3
        kinds = [type(event) for event in heard.events]
        assert kinds.index(Started) < kinds.index(Progress)
        steps = [event.step for event in heard.events if isinstance(event, Progress)]
        assert steps == [1, 2, 3, 4]
        previews = [event.preview for event in heard.events if isinstance(event, Progress)]
        assert all(preview and preview.startswith(b"\xff\xd8") for preview in previews), "not JPEG"


async def test_models_that_fail_leave_the_others_serving(catalog: Catalog) -> None:
    """A corrupt and a missing model are `failed`, say why without a path, and refuse; the good one serves."""
    async with running(catalog) as backend:
        await until(lambda: backend.status().loading_ended)
        good, corrupt, gone = backend.status().models
        assert good.state == "ready" and good.batch_size >= 2 and good.memory_bytes > 10_000
        assert good.revision and good.dtype == "float32"
        assert corrupt.state == gone.state == "failed"
        assert "corrupt" in (corrupt.error or "") and "no such folder" in (gone.error or "")
        assert "/" not in (corrupt.error or "").replace("test/corrupt", "")
        with pytest.raises(ModelNotReady):
            backend.add_request(make_request("x", "test/gone"), Heard())
        heard = Heard()
        backend.add_request(make_request("y"), heard)
        assert isinstance(await heard.final(), Finished)


async def test_requests_for_a_model_that_then_fails_are_told(catalog: Catalog) -> None:
    """Whoever waits for a model that turns out to be corrupt gets an error, not silence."""
    async with running(catalog) as backend:
        heard = Heard()
        backend.add_request(make_request("early", "test/corrupt"), heard)
        failed = await heard.final()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, ModelNotReady | ModelLoadError)


async def test_abort_is_heard_and_frees_the_place(catalog: Catalog) -> None:
    """Aborted while it waits for its model or in the middle: always `Aborted`, and nothing is left."""
    async with running(catalog) as backend:
        early, middle = Heard(), Heard()
        backend.add_request(make_request("early"), early)
        backend.abort_request("early")
        assert isinstance(await early.final(), Aborted)
        backend.add_request(make_request("middle", steps=150), middle)
        await until(lambda: any(isinstance(event, Progress) for event in middle.events))
        backend.abort_request("middle")
        assert isinstance(await middle.final(), Aborted)
        await until(lambda: backend.status().running == backend.status().waiting == 0)
        assert sum(isinstance(event, Progress) for event in middle.events) < 150


async def test_stopping_tells_everyone_and_ends_the_threads(catalog: Catalog) -> None:
    """At shutdown every reader gets a final event; afterwards new requests are refused."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    await until(lambda: backend.status().models[0].state == "ready")
    listeners = [Heard() for _ in range(8)]
    for i, heard in enumerate(listeners):
        backend.add_request(make_request(f"{i}", steps=150), heard)
    await until(lambda: backend.status().running > 0)
    began = time.monotonic()
    await backend.stop()
    assert time.monotonic() - began < 10
    for heard in listeners:
        final = await heard.final()
        assert isinstance(final, Failed) and isinstance(final.error, ShuttingDown)
    with pytest.raises(ShuttingDown):
        backend.add_request(make_request("late"), Heard())


async def test_the_event_loop_is_never_held_up(catalog: Catalog) -> None:
    """While pictures are made the loop turns on; if it waited for torch, every other client would too."""
    async with running(catalog) as backend:
        await until(lambda: backend.status().models[0].state == "ready")
        heard = Heard()
        backend.add_request(make_request("busy", steps=100), heard)
        turns = 0
        while not heard.ended.is_set():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100


def test_importing_the_backend_imports_no_torch() -> None:
    """The port is bound before torch is imported; one stray import at the top would cost seconds."""
    code = "import sys, app.backends.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_bad_listener_does_not_silence_the_others(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """One listener that raises must not keep the events of the same step from its neighbours."""

    def bad(event: GenerationEvent) -> None:
        raise ValueError("a listener's own fault")

    async with running(catalog) as backend:
        heard = Heard()
        backend.add_request(make_request("bad"), bad)
        backend.add_request(dataclasses.replace(make_request("good")), heard)
        assert isinstance(await heard.final(), Finished)
