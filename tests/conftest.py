"""Fixtures that many tests share: an application with a fake backend, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.catalog.entry import Catalog
from app.main import create_app
from app.settings import Settings
from tests.fakes import FakeBackend, make_catalog

pytest_plugins = ["tests.postgres"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come last: Playwright's synchronous API leaves an event loop running in this thread."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules that compute: two threads that share a busy core are many times slower than one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_settings(data_dir: Path, **values: Any) -> Settings:
    """Settings that read neither the environment's `.env` nor the checkout's."""
    defaults = {"secret_key": "a secret for tests", "reader_grace_seconds": 0.2}
    return Settings(_env_file=None, data_dir=data_dir, **{**defaults, **values})  # type: ignore[call-arg]


@pytest.fixture
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches say nothing about a tiny model; measuring them takes most of its loading."""
    monkeypatch.setattr("app.engine.warm_up.MAX_ROWS", 8)


@pytest.fixture
def catalog() -> Catalog:
    """Two models without weights."""
    return make_catalog()


@pytest.fixture
async def backend(catalog: Catalog) -> FakeBackend:
    """A backend without torch."""
    return FakeBackend(catalog)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own."""
    return make_settings(tmp_path / "data")


@pytest.fixture
async def app(settings: Settings, backend: FakeBackend, catalog: Catalog) -> AsyncIterator[FastAPI]:
    """The application, started."""
    application = create_app(settings, backend=backend, catalog=catalog)
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a network; it gets a stream's events when the stream has ended."""
    async with client_of(app) as opened:
        yield opened


def client_of(app: FastAPI, **values: Any) -> httpx.AsyncClient:
    """A further client of `app`: another voter."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **values)
