"""What the backend in this process tells of its work and its memory, with real models at tiny sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.backends.local import LocalBackend
from app.catalog.entry import Catalog
from app.engine.request import Finished
from app.errors import ModelNotReady
from tests.test_local_backend import Heard, make_entry, make_request, until
from tests.tiny import make_pipeline


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """One checkpoint under two names: all of its tensors are equal."""
    folder: Path = make_pipeline(tmp_path_factory.mktemp("twice"))
    entries = (make_entry("a", folder), make_entry("b", folder))
    return Catalog(entries, entries[0])


async def test_work_and_memory_are_told_by_model(catalog: Catalog) -> None:
    """A failure means that `/metrics` shows work that was not done, or memory twice that is held once."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        await until(lambda: backend.status().loading_ended)
        assert not backend.status().on_demand
        for number in range(2):
            heard = Heard()
            backend.add_request(make_request(f"one-{number}", "test/a", steps=3), heard)
            assert isinstance(await heard.final(), Finished)
        status = backend.status()
        work = status.work["test/a"]
        # Guided: two rows a step, and each request was alone.
        assert (work.batches, work.steps, work.rows) == (6, 6, 12)
        assert 0 < work.step_seconds <= status.step_seconds_total
        assert "test/b" not in status.work
        a, b = status.models
        assert a.memory_bytes == b.memory_bytes == a.shared_bytes > 0
        assert status.memory_bytes == {"cpu": a.memory_bytes}
        backend.unload_model("test/b")
        assert backend.status().models[1].state == "unloading", "a page that is drawn now must look again"
        await until(lambda: backend.status().models[1].state == "unloaded")
        await until(lambda: backend.status().models[0].shared_bytes == 0)
        assert backend.status().memory_bytes == {"cpu": a.memory_bytes}
        backend.load_model("test/b")
        assert backend.status().models[1].state == "loading"
        assert backend.status().loading_ended, "a model that comes later is no new start"
        await until(lambda: backend.status().models[1].state == "ready")
    finally:
        await backend.stop()


async def test_what_is_asked_before_torch_is_there_is_done(catalog: Catalog) -> None:
    """A failure means that a click in the first seconds is answered with 202 and then forgotten."""
    backend = LocalBackend(catalog, device="cpu", threads=1)
    await backend.start()
    try:
        backend.unload_model("test/b")
        await until(lambda: backend.status().models[1].state == "unloaded")
        await until(lambda: backend.status().models[0].state == "ready")
        with pytest.raises(ModelNotReady):
            backend.add_request(make_request("late", "test/b"), Heard())
    finally:
        await backend.stop()
