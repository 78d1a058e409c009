"""Real HTTP for tests: uvicorn on a free port, in this event loop or in a thread; and a reader of streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI


def _server(app: FastAPI, lifespan: Literal["on", "off"]) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan=lifespan,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def _address(server: uvicorn.Server) -> str:
    port = server.servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve `app`, which is started already, in this event loop; yields its address."""
    server = _server(app, "off")
    task = asyncio.create_task(server._serve())
    while not server.started:
        if task.done():
            task.result()
            raise RuntimeError("the server ended before it had started")
        await asyncio.sleep(0.01)
    try:
        yield _address(server)
    finally:
        app.state.services.generations.begin_shutdown()
        server.should_exit = True
        await task


@contextmanager
def serving_in_thread(app: FastAPI) -> Iterator[str]:
    """Start and serve `app` in a thread of its own; yields its address."""
    server = _server(app, "on")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pause = threading.Event()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server ended before it had started")
        pause.wait(0.01)
    try:
        yield _address(server)
    finally:
        server.should_exit = True
        thread.join(15)


@dataclass(frozen=True)
class Event:
    """One server-sent event as it was read."""

    event: str
    id: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        """The data as a JSON object."""
        value = json.loads(self.data)
        assert isinstance(value, dict)
        return value


def parse_events(text: str) -> list[Event]:
    """All events of a whole stream; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if name:
                fields.setdefault(name, []).append(value)
        if "data" in fields:
            events.append(
                Event(fields.get("event", [""])[0], fields.get("id", [""])[0], "\n".join(fields["data"]))
            )
    return events


async def read_events(response: httpx.Response) -> AsyncIterator[Event]:
    """The events of a stream as they come."""
    buffer = ""
    async for chunk in response.aiter_text():
        buffer += chunk
        *blocks, buffer = buffer.split("\n\n")
        for event in parse_events("\n\n".join(blocks)):
            yield event


async def eventually(condition: Any, seconds: float = 5.0) -> None:
    """Return once `condition()` is true.

    Raises:
        AssertionError: It has not become true in time.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition(), "it has not become true in time"
