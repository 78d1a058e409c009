"""What happens to generations when storage, backend or process fail: nothing is lost silently."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.errors import StorageUnavailable
from app.main import create_app
from app.services.generations import GenerationService
from app.settings import Settings
from tests.conftest import client_of, make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.postgres import PostgresServer
from tests.servers import eventually, parse_events


def service_of(app: FastAPI) -> GenerationService:
    service: GenerationService = app.state.services.generations
    return service


def broken(*_: object, **__: object) -> Any:
    raise StorageUnavailable("The database does not answer. Please try again.", retry_after=2.0)


async def test_generation_goes_on_when_storage_fails(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final message reaches its readers, says that it was not kept, and is kept when storage is back."""
    service = service_of(app)
    backend.step_seconds = 0.01
    put: Callable[..., None] = service._images.put
    monkeypatch.setattr(service._images, "put", broken)
    response = await client.get("/generate", params={"prompt": "a", "steps": 3})
    final = parse_events(response.text)[-2].json
    assert final["done"] is True
    assert final["image"]
    assert "could not be kept" in final["notices"][0]
    path = f"/generations/{final['generation_id']}"
    again = parse_events((await client.get(f"{path}/events")).text)
    assert again[0].json["image"] == final["image"]
    assert (await client.get(f"/images/{final['generation_id']}.png")).status_code == 200
    monkeypatch.setattr(service._images, "put", put)
    await eventually(lambda: not service._unkept)
    shown = (await client.get(path)).json()
    assert (shown["state"], shown["image_url"]) == ("done", f"/images/{final['generation_id']}.png")
    assert (await client.get(shown["image_url"])).status_code == 200


async def test_nothing_starts_when_it_cannot_be_written_down(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_of(app)._generations, "insert_many", broken)
    response = await client.post("/generations", json={"prompt": "a"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["code"] == "storage_unavailable"
    assert backend.requests == []
    assert service_of(app).unfinished == 0


async def test_model_that_fails_in_between_is_told(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = service_of(app)._generations.insert_many

    def slow(records: Any) -> None:
        insert(records)
        backend.set_model("builtin/base", "failed")

    monkeypatch.setattr(service_of(app)._generations, "insert_many", slow)
    events = parse_events((await client.get("/generate", params={"prompt": "a"})).text)
    assert events[0].json["error"]["code"] == "model_not_ready"
    assert service_of(app).unfinished == 0


async def test_mistakes_of_ours_still_end_the_stream(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception nobody thought of must not leave a reader waiting and a place in the queue taken."""

    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of this")

    service = service_of(app)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "add_request", wrong)
        events = parse_events((await client.get("/generate", params={"prompt": "a"})).text)
        assert events[-2].json["error"]["code"] == "generation_failed"
    with monkeypatch.context() as patch:
        patch.setattr("app.services.generations.encode_png", wrong)
        events = parse_events((await client.get("/generate", params={"prompt": "a"})).text)
        assert events[-2].json["error"]["code"] == "generation_failed"
    with monkeypatch.context() as patch:
        patch.setattr(service._generations, "finish", wrong)
        events = parse_events((await client.get("/generate", params={"prompt": "a"})).text)
        assert events[-2].json["done"] is True
        assert "image" in events[-2].json
    assert service.unfinished == 0


async def test_failed_and_cancelled_rows_say_why(client: httpx.AsyncClient) -> None:
    events = parse_events((await client.get("/generate", params={"prompt": "memory"})).text)
    shown = (await client.get(f"/generations/{events[-2].json['generation_id']}")).json()
    assert shown["state"] == "failed"
    assert shown["error"]["code"] == "out_of_memory"


async def test_neighbours_of_a_failure_succeed(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.step_seconds = 0.01
    prompts = ["a", "memory", "b", "fail", "c"]
    responses = await asyncio.gather(
        *(client.get("/generate", params={"prompt": prompt, "steps": 4}) for prompt in prompts)
    )
    done = ["error" not in parse_events(response.text)[-2].json for response in responses]
    assert done == [True, False, True, False, True]


async def test_unknown_words_become_a_notice(tmp_path: Path) -> None:
    catalog = make_catalog()
    application = create_app(make_settings(tmp_path), backend=FakeBackend(catalog), catalog=catalog)
    service = service_of(application)
    service._unknown_words = lambda entry, prompt: [w for w in prompt.split() if w == "xylophone"]
    async with application.router.lifespan_context(application), client_of(application) as client:
        body = (await client.post("/generations", json={"prompt": "a xylophone", "steps": 1})).json()
        assert body["generations"][0]["notices"] == ["The model does not know these words: “xylophone”."]


async def test_unreachable_database_is_503_until_it_comes(
    tmp_path: Path, postgres_server: PostgresServer, empty_postgres_url: str
) -> None:
    """A database that starts later than we do is no reason to crash, nor one that goes away for a while."""
    postgres_server.stop()
    try:
        catalog = make_catalog()
        settings = make_settings(tmp_path, database_url=empty_postgres_url)
        application = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
        began = time.monotonic()
        async with application.router.lifespan_context(application), client_of(application) as client:
            assert time.monotonic() - began < 2
            assert (await client.get("/livez")).status_code == 200
            await eventually(lambda: not application.state.services.status.health().ready)
            assert (await client.get("/readyz")).status_code == 503
            refused = await client.post("/generations", json={"prompt": "a"})
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            page = await client.get("/", headers={"accept": "application/json"})
            assert page.status_code == 200
            await asyncio.to_thread(postgres_server.start)
            await eventually(lambda: application.state.services.status.health().ready, seconds=20)
            accepted = await client.post("/generations", json={"prompt": "a", "steps": 1})
            assert accepted.status_code == 201
    finally:
        postgres_server.start()


async def test_what_a_dead_process_left_is_marked_failed(
    app: FastAPI, client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL a row would say 'running' for ever; only a dead owner's rows may be touched."""
    left = (await client.post("/generations", json={"prompt": "never"})).json()["batch_id"]
    await eventually(lambda: service_of(app)._generations.get(left).state == "running")  # type: ignore[union-attr]
    catalog = make_catalog()
    neighbour = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    async with neighbour.router.lifespan_context(neighbour), client_of(neighbour) as reader:
        assert (await reader.get(f"/generations/{left}")).json()["state"] == "running"
    monkeypatch.setattr("app.main.DEAD_AFTER_SECONDS", -1.0)
    successor = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    async with successor.router.lifespan_context(successor), client_of(successor) as reader:
        shown = (await reader.get(f"/generations/{left}")).json()
        assert (shown["state"], shown["error"]["code"]) == ("failed", "server_stopped")
        final = parse_events((await reader.get(f"/generations/{left}/events")).text)
        assert final[-1].data == "[DONE]"


async def test_another_process_can_watch_by_the_database(
    app: FastAPI, client: httpx.AsyncClient, backend: FakeBackend, settings: Settings
) -> None:
    """Behind a load balancer a reader may reach a process that does not make the picture."""
    backend.step_seconds = 0.02
    made = (await client.post("/generations", json={"prompt": "a", "steps": 10})).json()["batch_id"]
    catalog = make_catalog()
    other = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    async with other.router.lifespan_context(other), client_of(other) as neighbour:
        events = parse_events((await neighbour.get(f"/generations/{made}/events")).text)
        assert events[-2].json["done"] is True
        assert events[-2].json["image_format"] == "png"


async def test_batch_stream_shows_all_and_ends_when_all_have_ended(
    app: FastAPI, client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.step_seconds, backend.slots = 0.01, 2
    body = (await client.post("/generations", json={"prompt": "a", "steps": 4, "n": 5})).json()
    batches = [batch async for batch in service_of(app).watch_batch(body["batch_id"])]
    assert all(len(batch.generations) == 5 for batch in batches)
    assert [view.state for view in batches[-1].generations] == ["done"] * 5
    assert any(view.place for view in batches[0].generations)
    assert (await anext(service_of(app).watch_batch(body["batch_id"]))).final
    newest = await service_of(app).newest_unfinished(client.cookies["darkroom_voter"].rsplit(".", 1)[0])
    assert newest is None


async def test_probes_stay_quick_while_storage_hangs(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs must not make a supervisor kill the process: probes use no thread of storage."""
    import threading

    release = threading.Event()
    monkeypatch.setattr(service_of(app)._generations, "get", lambda _: release.wait(10))
    hanging = [asyncio.create_task(client.get("/generations/x")) for _ in range(60)]
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/health")).status_code == 200
    assert time.perf_counter() - began < 5  # far below the 10 s that storage hangs
    release.set()
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
