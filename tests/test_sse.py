"""The streams over real HTTP: byte by byte, resumed, left, never read."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from contextlib import suppress

import httpx
import pytest
from fastapi import FastAPI

from app.services.generations import GenerationService
from app.web.sse import EventStream
from tests.conftest import make_settings
from tests.fakes import FakeBackend, jpeg
from tests.servers import eventually, parse_events, read_events, serving


def service_of(app: FastAPI) -> GenerationService:
    service: GenerationService = app.state.services.generations
    return service


@pytest.fixture
async def browser(app: FastAPI) -> httpx.AsyncClient:
    """A client over a real connection."""
    async with serving_client(app) as opened:
        yield opened


def serving_client(app: FastAPI) -> _Serving:
    return _Serving(app)


class _Serving:
    def __init__(self, app: FastAPI) -> None:
        self._server = serving(app)

    async def __aenter__(self) -> httpx.AsyncClient:
        address = await self._server.__aenter__()
        self._client = httpx.AsyncClient(base_url=address, timeout=20)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await self._server.__aexit__(None, None, None)


async def test_wire_byte_by_byte(browser: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The promise of the wire: LF line ends, these keys in this order; old clients parse exactly this."""
    backend.step_seconds = 0.02
    response = await browser.get("/generate", params={"prompt": "a sunset", "steps": 3, "seed": 5})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    events = parse_events(response.text)
    final = events[-2].json
    identity = final["generation_id"]
    expected = b""
    for step in (1, 2):
        preview = jpeg(step * 10)
        body = {
            "step": step,
            "total_steps": 3,
            "progress": {1: 33.3, 2: 66.7}[step],
            "image": base64.b64encode(preview).decode(),
            "model": "base",
            "done": False,
            "generation_id": identity,
            "model_id": "builtin/base",
            "seed": 5,
            "image_format": "jpeg",
            "bytes": len(preview),
            "seconds": round(0.1 * step, 3),
            "notices": [],
            "seconds_left": round(0.1 * (3 - step), 3),
        }
        expected += f"id: {identity}:{step}\ndata: {json.dumps(body)}\n\n".encode()
    png = (await browser.get(f"/images/{identity}.png")).content
    body = {
        "step": 3,
        "total_steps": 3,
        "progress": 100.0,
        "image": base64.b64encode(png).decode(),
        "model": "base",
        "done": True,
        "generation_id": identity,
        "model_id": "builtin/base",
        "seed": 5,
        "image_format": "png",
        "bytes": len(png),
        "seconds": 1.25,
        "notices": [],
        "image_url": f"/images/{identity}.png",
    }
    expected += f"id: {identity}:3\ndata: {json.dumps(body)}\n\nid: {identity}:3\ndata: [DONE]\n\n".encode()
    assert response.content == expected


async def test_failure_is_data_and_then_done(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/generate", params={"prompt": "fail"})
    *_, failure, done = parse_events(response.text)
    assert failure.json["error"] == {"code": "generation_failed", "message": "The numbers went astray."}
    assert failure.json["done"] is True
    assert done.data == "[DONE]"
    response = await browser.get("/generate", params={"prompt": "memory"})
    assert parse_events(response.text)[-2].json["error"]["code"] == "out_of_memory"


async def test_waiting_tells_the_place(browser: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.step_seconds, backend.slots = 0.05, 1
    first = asyncio.create_task(browser.get("/generate", params={"prompt": "a", "steps": 4}))
    await eventually(lambda: backend.status().running == 1)
    second = await browser.get("/generate", params={"prompt": "b", "steps": 2})
    events = parse_events(second.text)
    assert events[0].event == "queued"
    assert events[0].json["place"] == 1
    assert events[0].id.endswith(":0")
    assert all(event.event == "" for event in events[1:])
    await first


async def test_previews_can_be_left_out(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/generate", params={"prompt": "a", "steps": 3, "preview": "false"})
    events = parse_events(response.text)
    assert [event.json["image"] for event in events[:-2]] == [None] * len(events[:-2])
    assert events[-2].json["image_format"] == "png"


async def test_reader_that_comes_back_resumes_its_generation(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Within the grace period Last-Event-ID continues; a second generation would be a second bill."""
    backend.step_seconds = 0.05
    async with browser.stream("GET", "/generate", params={"prompt": "a", "steps": 8}) as response:
        async for event in read_events(response):
            last = event
            if event.json["step"] == 2:
                break
    headers = {"Last-Event-ID": last.id}
    response = await browser.get("/generate", params={"prompt": "a", "steps": 8}, headers=headers)
    events = parse_events(response.text)
    assert [event.json["generation_id"] for event in events[:-1]] == [last.id.split(":")[0]] * (
        len(events) - 1
    )
    assert events[0].json["step"] > 2
    assert events[-2].json["done"] is True
    assert len(backend.requests) == 1
    ended = await browser.get("/generate", params={"prompt": "a"}, headers={"Last-Event-ID": events[-2].id})
    assert (ended.status_code, ended.content) == (204, b"")
    assert len(backend.requests) == 1


async def test_reader_that_stays_away_frees_the_place(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """Ctrl-C on curl: after the grace period the running one stops, and a waiting one never runs."""
    backend.step_seconds, backend.slots = 0.05, 1
    running = asyncio.create_task(_read_one(browser, "running"))
    await eventually(lambda: backend.status().running == 1)
    waiting = asyncio.create_task(_read_one(browser, "waiting"))
    last_ids = await asyncio.gather(running, waiting)
    await eventually(lambda: service_of(app).unfinished == 0, seconds=3)
    assert backend.status().running == backend.status().waiting == 0
    assert backend.aborts == 2
    steps = backend.steps_total
    await asyncio.sleep(0.2)
    assert backend.steps_total == steps
    for last_id in last_ids:
        response = await browser.get("/generate", params={"prompt": "a"}, headers={"Last-Event-ID": last_id})
        assert response.status_code == 204


async def _read_one(browser: httpx.AsyncClient, prompt: str) -> str:
    async with browser.stream("GET", "/generate", params={"prompt": prompt, "steps": 100}) as response:
        async for event in read_events(response):
            return event.id
    raise AssertionError("the stream ended without an event")


async def test_png_reader_that_leaves_frees_the_place(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await browser.get(
            "/generate", params={"prompt": "never"}, headers={"accept": "image/png"}, timeout=0.3
        )
    await eventually(lambda: service_of(app).unfinished == 0, seconds=3)
    assert backend.aborts == 1


async def test_posted_generation_outlives_its_reader(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.step_seconds = 0.05
    body = (await browser.post("/generations", json={"prompt": "a", "steps": 10})).json()
    path = f"/generations/{body['batch_id']}/events"
    async with browser.stream("GET", path) as response:
        async for _ in read_events(response):
            break
    await asyncio.sleep(0.4)  # twice the grace period
    events = parse_events((await browser.get(path)).text)
    assert events[-2].json["done"] is True
    replayed = parse_events((await browser.get(path)).text)
    assert [event.data for event in replayed] == [event.data for event in events[-2:]]
    assert backend.aborts == 0


async def test_waiting_generation_that_nobody_watches_is_dropped(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    from dataclasses import replace

    service_of(app).limits = replace(service_of(app).limits, unwatched_seconds=0.1)
    backend.slots, backend.step_seconds = 1, 0.05
    running = (await browser.post("/generations", json={"prompt": "a", "steps": 8})).json()["batch_id"]
    waiting = (await browser.post("/generations", json={"prompt": "b"})).json()["batch_id"]
    await eventually(lambda: service_of(app).unfinished == 1)
    assert (await browser.get(f"/generations/{waiting}")).json()["state"] == "cancelled"
    await eventually(lambda: service_of(app).unfinished == 0)
    assert (await browser.get(f"/generations/{running}")).json()["state"] == "done"


async def test_events_resume_only_with_what_is_newer(
    browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.step_seconds = 0.05
    body = (await browser.post("/generations", json={"prompt": "a", "steps": 6})).json()
    path = f"/generations/{body['batch_id']}/events"
    headers = {"Last-Event-ID": f"{body['batch_id']}:4"}
    steps = [
        event.json["step"] for event in parse_events((await browser.get(path, headers=headers)).text)[:-1]
    ]
    assert steps == [5, 6]


@pytest.mark.parametrize("value", ["-1", "x:-1", "a:" + "9" * 30, "a:b", "a:1:2", "é:1", ":1", "a/../b:1"])
async def test_foreign_last_event_id_is_refused(
    browser: httpx.AsyncClient, backend: FakeBackend, value: str
) -> None:
    headers = {"Last-Event-ID": value.encode()}
    response = await browser.get("/generate", params={"prompt": "a"}, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["field"] == "Last-Event-ID"
    assert backend.requests == []


async def test_last_event_id_of_nothing_known_starts_nothing(
    browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A browser that reconnects after its generation was deleted must not make another one, for ever."""
    headers = {"Last-Event-ID": "gone:3"}
    assert (await browser.get("/generate", params={"prompt": "a"}, headers=headers)).status_code == 204
    assert backend.requests == []


async def test_seven_tabs_watch_one_generation(browser: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.step_seconds = 0.03
    body = (await browser.post("/generations", json={"prompt": "a", "steps": 5})).json()
    path = f"/generations/{body['batch_id']}/events"
    texts = [response.text for response in await asyncio.gather(*(browser.get(path) for _ in range(7)))]
    finals = {parse_events(text)[-2].data for text in texts}
    assert len(finals) == 1


async def test_idle_stream_is_kept_open_by_comments(app: FastAPI, backend: FakeBackend) -> None:
    from dataclasses import replace

    app.state.services = replace(app.state.services, ping_seconds=0.05)
    async with (
        serving_client(app) as browser,
        browser.stream("GET", "/generate", params={"prompt": "never"}) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith(":"):
                assert line == ": still here"
                break


async def test_slow_reader_gets_the_newest_state_and_the_final_one(
    app: FastAPI, backend: FakeBackend
) -> None:
    """A backlog would make a slow reader ever later; a lost final event would leave it waiting for ever."""
    from app.services.clients import Client
    from app.services.params import GenerationParams

    backend.step_seconds = 0.005
    service = service_of(app)
    batch = await service.create(GenerationParams(prompt="a", steps=40), Client("c" * 20, "test", True))
    steps = []
    async for view in service.watch(batch.id):
        steps.append(view.step)
        await asyncio.sleep(0.08)
    assert len(steps) < 12
    assert steps == sorted(steps)
    assert view.state == "done"
    assert view.image is not None


async def test_reader_that_takes_nothing_is_left(app: FastAPI) -> None:
    """`send_timeout` ends its stream and releases what it holds; others never notice."""
    released = asyncio.Event()

    async def messages():  # type: ignore[no-untyped-def]
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            released.set()

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    response = EventStream(messages(), sep="\n", ping=100, send_timeout=0.1)
    scope = {"type": "http", "method": "GET"}
    async with asyncio.timeout(3):
        await response(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        await released.wait()


async def test_hundred_random_disconnects_leak_nothing(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A leaked slot, watcher or task would stop the service after a day of people closing tabs."""
    backend.step_seconds, backend.slots = 0.005, 8
    service = service_of(app)
    service.limits = type(service.limits)(
        queue=200, client_share=200, reader_grace_seconds=0.05, unwatched_seconds=0.1
    )
    await browser.get("/generate", params={"prompt": "warm", "steps": 1})
    await eventually(lambda: service.unfinished == 0)
    tasks_before = len(asyncio.all_tasks())
    random_source = random.Random(3)

    async def visit() -> None:
        timeout = random_source.uniform(0.001, 0.3)
        accept = random_source.choice(["*/*", "image/png"])
        with suppress(httpx.TimeoutException):
            await browser.get(
                "/generate", params={"prompt": "a", "steps": 30}, timeout=timeout, headers={"accept": accept}
            )

    for _ in range(10):
        await asyncio.gather(*(visit() for _ in range(10)))
    await eventually(lambda: service.unfinished == 0, seconds=10)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before + 2, seconds=5)
    assert service.watchers == 0
    assert backend.status().running == backend.status().waiting == 0


async def test_shutdown_ends_every_stream_with_a_final_event(
    app: FastAPI, browser: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.step_seconds, backend.slots = 0.02, 2
    tasks = [
        asyncio.create_task(browser.get("/generate", params={"prompt": "a", "steps": 150})) for _ in range(5)
    ]
    await eventually(lambda: service_of(app).watchers == 5)
    service_of(app).begin_shutdown()
    for response in await asyncio.gather(*tasks):
        *_, final, done = parse_events(response.text)
        assert final.json["error"]["code"] == "shutting_down"
        assert done.data == "[DONE]"
    refused = await browser.get("/generate", params={"prompt": "a"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"


def test_settings_reach_the_streams(tmp_path, catalog) -> None:  # type: ignore[no-untyped-def]
    from app.main import create_app

    settings = make_settings(tmp_path, sse_ping_seconds=7, sse_send_timeout_seconds=8)
    application = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    assert application.state.services.ping_seconds == 7
    assert application.state.services.send_timeout_seconds == 8
