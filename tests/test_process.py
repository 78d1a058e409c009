"""The whole process, with the real engine and a tiny model: starting, being told to stop, being killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.servers import Event, read_events
from tests.tiny import make_pipeline

GRACE_SECONDS = 5

CATALOG = """
default = "tiny"

[models.tiny]
label = "Tiny"
best_for = "Tests."
description = "Random weights."
source = "./weights"
family = "stable_diffusion"
licence = "MIT"

[models.tiny.defaults]
steps = 20
guidance_scale = 3.0
eta = 0.0
width = 64
height = 64
noise_scheduler = "ddim"

[models.tiny.limits]
sizes = [[64, 64]]
size_multiple = 16
min_size = 16
max_size = 256
max_pixels = 65536
"""


@dataclass
class Darkroom:
    """A running process."""

    process: subprocess.Popen[str]
    address: str
    data_dir: Path
    bound_after: float

    async def ready(self) -> None:
        """Wait until it serves."""
        async with httpx.AsyncClient(base_url=self.address) as client, asyncio.timeout(90):
            while (await client.get("/readyz")).status_code != 200:
                assert self.process.poll() is None
                await asyncio.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send the signal; seconds until the process has ended."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def catalog_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with one tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    make_pipeline(folder / "weights")
    (folder / "tiny.toml").write_text(CATALOG)
    return folder / "tiny.toml"


@pytest.fixture
def darkroom(catalog_file: Path, tmp_path: Path) -> Iterator[Darkroom]:
    """A fresh process on a free port."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("DARKROOM_")},
        "DARKROOM_CATALOG": str(catalog_file),
        "DARKROOM_DATA_DIR": str(tmp_path / "data"),
        "DARKROOM_GRACEFUL_SHUTDOWN_SECONDS": str(GRACE_SECONDS),
        "DARKROOM_THREADS": "1",
        "DARKROOM_DTYPE": "float32",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = line.rsplit(" ", 1)[1].strip()
        yield Darkroom(process, address, tmp_path / "data", time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdout.close()


async def _watch(address: str, seed: int, first: asyncio.Event) -> list[Event]:
    events = []
    params = {"prompt": "a red cat", "steps": 150, "width": 256, "height": 256, "seed": seed}
    async with (
        httpx.AsyncClient(base_url=address, timeout=60) as client,
        client.stream("GET", "/generate", params=params) as response,
    ):
        async for event in read_events(response):
            events.append(event)
            if event.event == "":
                first.set()
    return events


async def test_sigterm_in_mid_generation_ends_every_stream(darkroom: Darkroom) -> None:
    """Every reader gets a final event, and the process ends within its grace period and two seconds."""
    await darkroom.ready()
    first = asyncio.Event()
    readers = [asyncio.create_task(_watch(darkroom.address, seed, first)) for seed in range(6)]
    async with asyncio.timeout(60):
        await first.wait()
    seconds = await asyncio.to_thread(darkroom.stop)
    assert seconds < GRACE_SECONDS + 2
    assert darkroom.process.returncode in (0, -signal.SIGTERM)
    for events in await asyncio.gather(*readers):
        *_, final, done = events
        assert final.json["done"] is True
        assert final.json["error"]["code"] == "shutting_down"
        assert done.data == "[DONE]"
    with sqlite3.connect(darkroom.data_dir / "darkroom.db") as database:
        states = database.execute("SELECT DISTINCT state, error_code FROM generations").fetchall()
    database.close()
    assert states == [("failed", "shutting_down")]


async def test_port_answers_before_torch_and_sigterm_while_loading_leaves_nobody(darkroom: Darkroom) -> None:
    """A supervisor probes within seconds; a process that cannot be stopped while it loads is an orphan."""
    async with httpx.AsyncClient(base_url=darkroom.address) as client:
        assert (await client.get("/livez")).status_code == 200
        health = await client.get("/health")
        assert health.json()["status"] in ("starting", "healthy")
    # Two seconds on an idle machine; this one may be busy.
    assert darkroom.bound_after < 8
    assert await asyncio.to_thread(darkroom.stop) < GRACE_SECONDS + 2


LOST = """
import asyncio, sys, threading
from pathlib import Path
import uvicorn
from app.main import create_app
from tests.conftest import make_settings
from tests.fakes import FakeBackend, make_catalog

catalog = make_catalog()
backend = FakeBackend(catalog)
app = create_app(make_settings(Path(sys.argv[1])), backend=backend, catalog=catalog)
threading.Timer(1.0, lambda: setattr(backend, "alive", False)).start()
uvicorn.run(app, port=0, log_level="critical")
"""


def test_process_ends_with_its_engine(tmp_path: Path) -> None:
    """A lost device never comes back; a process that stays up without it cannot be helped."""
    process = subprocess.run([sys.executable, "-c", LOST, str(tmp_path)], timeout=60)
    assert process.returncode in (0, -signal.SIGTERM)


async def test_picture_of_the_real_engine_survives_a_kill(darkroom: Darkroom, catalog_file: Path) -> None:
    """What was acknowledged is on disk: SIGKILL right after the answer loses nothing."""
    await darkroom.ready()
    async with httpx.AsyncClient(base_url=darkroom.address, timeout=60) as client:
        headers = {"accept": "image/png"}
        response = await client.get("/generate", params={"prompt": "a cat", "steps": 4}, headers=headers)
        assert response.status_code == 200
        generation_id = response.headers["content-location"].rsplit("/", 1)[1].removesuffix(".png")
        body = {"kind": "thumb", "shown": [generation_id], "value": 1}
        assert (await client.post("/votes", json=body)).status_code == 200
    await asyncio.to_thread(darkroom.stop, signal.SIGKILL)
    assert (darkroom.data_dir / "media" / f"{generation_id}.png").read_bytes() == response.content
    with sqlite3.connect(darkroom.data_dir / "darkroom.db") as database:
        assert database.execute("SELECT value FROM votes").fetchall() == [(1,)]
    database.close()
