"""Wires everything, closes everything. Importing this imports no torch: the port is bound before that."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.backends.base import Backend
from app.backends.local import LocalBackend
from app.catalog.entry import Catalog
from app.catalog.loader import checked_by, load_catalog
from app.catalog.vocabulary import unknown_words
from app.errors import StorageUnavailable
from app.resources import static_dir
from app.services.clients import ClientCookies
from app.services.generations import GenerationLimits, GenerationService
from app.services.models import ModelService
from app.services.pictures import software_versions
from app.services.status import StatusService
from app.services.storage import StorageThreads
from app.services.votes import VoteService
from app.settings import Settings
from app.storage.database import Database
from app.storage.generations import GenerationRepository
from app.storage.images import ImageStore
from app.storage.migrations import migrate
from app.storage.processes import ProcessRepository
from app.storage.votes import VoteRepository
from app.web import (
    docs,
    errors,
    generate,
    generations,
    images,
    metrics,
    models,
    openai,
    pages,
    probes,
    root,
    votes,
)
from app.web.dependencies import Services
from app.web.security import BodyLimit, HostAndOrigin, SecurityHeaders

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 30.0  # Several heartbeats may be late on a machine that computes at its limit.
_RETRY_SECONDS = 1.0
_ENGINE_SECONDS = 1.0
_OPEN_SECONDS = 1.0
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Process:
    """What the lifespan opens and closes."""

    settings: Settings
    owner: str
    backend: Backend
    database: Database
    processes: ProcessRepository
    storage: StorageThreads
    services: Services


def create_app(
    settings: Settings, *, backend: Backend | None = None, catalog: Catalog | None = None
) -> FastAPI:
    """The application, ready to be served.

    Args:
        settings: See `app.settings`.
        backend: What runs requests; by default a `LocalBackend` with the settings' device and precision.
        catalog: What can be generated with; by default what the settings name.

    Raises:
        InvalidConfiguration: A setting cannot be used.
        ValueError: The database's or the media folder's URL cannot be used.
        StorageUnavailable: The data folder cannot be made.
    """
    process = _wire(settings, backend, catalog)
    services = process.services
    app = FastAPI(
        title="Darkroom",
        summary="Pictures that develop before your eyes",
        version=software_versions()["darkroom"],
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: _lifespan(process),
    )
    app.state.services = services
    app.state.metrics = metrics.make_registry(services)
    for module in (root, generate, generations, images, votes, models, openai, probes, metrics, docs, pages):
        app.include_router(module.router)
    app.mount("/static", _StaticFiles(directory=static_dir()), name="static")
    errors.install(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit)
    app.add_middleware(HostAndOrigin, bound_host=settings.host, allowed_hosts=settings.allowed_hosts)
    app.add_middleware(SecurityHeaders, cookies=services.cookies)
    return app


def _wire(settings: Settings, backend: Backend | None, catalog: Catalog | None) -> _Process:
    if catalog is None:
        catalog = load_catalog(settings.catalog)
    catalog = checked_by(catalog, settings.safety_checker_source)
    if backend is None:
        backend = LocalBackend(
            catalog,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
            max_loaded=settings.max_loaded,
            preview_cache=settings.data_dir / "previews",
            hub_token=settings.hf_token.get_secret_value() if settings.hf_token else None,
        )
    cookies = ClientCookies(settings.signing_key())
    database = Database(settings.database_url, settings.data_dir)
    generation_rows, vote_rows = GenerationRepository(database), VoteRepository(database)
    storage = StorageThreads(database.together)
    owner = secrets.token_urlsafe(12)
    generation_service = GenerationService(
        catalog,
        backend,
        generation_rows,
        vote_rows,
        ImageStore(settings.media_location),
        storage,
        owner=owner,
        limits=GenerationLimits(
            queue=settings.max_queue,
            client_share=settings.max_per_client,
            reader_grace_seconds=settings.reader_grace_seconds,
        ),
        unknown_words=unknown_words,
    )
    status = StatusService(catalog, backend, generation_service)
    services = Services(
        catalog=catalog,
        generations=generation_service,
        votes=VoteService(vote_rows, generation_rows, storage),
        status=status,
        models=ModelService(catalog, backend, status),
        cookies=cookies,
        ping_seconds=settings.sse_ping_seconds,
        send_timeout_seconds=settings.sse_send_timeout_seconds,
        admin_token=settings.admin_token.get_secret_value() if settings.admin_token else None,
    )
    return _Process(settings, owner, backend, database, ProcessRepository(database), storage, services)


@asynccontextmanager
async def _lifespan(process: _Process) -> AsyncIterator[None]:
    """Nothing here waits for torch, and for the database only a moment: the server answers after it."""
    generation_service = process.services.generations
    opened = asyncio.Event()
    tasks = [asyncio.create_task(_keep_alive(process, opened))]
    with suppress(TimeoutError):
        await asyncio.wait_for(opened.wait(), _OPEN_SECONDS)
    await process.backend.start()
    try:
        with _on_signals(generation_service.begin_shutdown) as server_listens:
            if server_listens:
                tasks.append(asyncio.create_task(_end_with_the_engine(process)))
            yield
    finally:
        generation_service.begin_shutdown()
        await process.backend.stop()
        await generation_service.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _retire(process)


async def _keep_alive(process: _Process, opened: asyncio.Event) -> None:
    """Open the database, however long that takes, then give a heartbeat and bury the dead."""
    status = process.services.status
    while True:
        try:
            await _beat(process)
        except StorageUnavailable as error:
            logger.warning("storage: %s", error.message)
            status.storage_fails(error.message)
        except Exception:
            logger.exception("the heartbeat failed")
            status.storage_fails("The database cannot be used.")
        else:
            status.storage_answers()
            opened.set()
        await asyncio.sleep(HEARTBEAT_SECONDS if process.storage.opened else _RETRY_SECONDS)


async def _beat(process: _Process) -> None:
    if not process.storage.opened:
        await asyncio.to_thread(migrate, process.settings.database_url, process.settings.data_dir)
    await asyncio.to_thread(process.processes.heartbeat, process.owner)
    reaped = await asyncio.to_thread(process.processes.reap_dead, DEAD_AFTER_SECONDS)
    if reaped:
        logger.info("%d generations of processes that ended were marked failed", reaped)
    process.storage.open()


async def _end_with_the_engine(process: _Process) -> None:
    """A lost device cannot be mended from inside: end the process, its supervisor starts a new one."""
    while process.backend.status().alive:
        await asyncio.sleep(_ENGINE_SECONDS)
    logger.critical("the engine is lost; the process ends")
    await asyncio.sleep(_ENGINE_SECONDS)  # Readers have been told; let it reach them.
    signal.raise_signal(signal.SIGTERM)


async def _retire(process: _Process) -> None:
    if process.storage.opened:
        try:
            await asyncio.to_thread(process.processes.retire, process.owner)
        except StorageUnavailable:
            logger.warning("this process could not sign off; another one will notice")
    process.database.close()


@contextmanager
def _on_signals(callback: Callable[[], None]) -> Iterator[bool]:
    """Call back on SIGTERM and SIGINT, besides what the server does; yields whether it listens to SIGTERM.

    The server ends the lifespan only after all streams have ended; they end because of this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> Any:
        loop.call_soon_threadsafe(callback)
        previous = before[signal.Signals(number)]
        return previous(number, frame) if callable(previous) else None

    for number, previous in before.items():
        if callable(previous):
            signal.signal(number, handle)
    try:
        yield callable(before[signal.SIGTERM])
    finally:
        for number, previous in before.items():
            if callable(previous):
                signal.signal(number, previous)


class _StaticFiles(StaticFiles):
    """An address with the content's hash in it may be kept for ever; any other is asked for again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        versioned = b"v=" in scope.get("query_string", b"") and response.status_code in (200, 304)
        response.headers["Cache-Control"] = _FOR_EVER if versioned else "no-cache"
        return response
