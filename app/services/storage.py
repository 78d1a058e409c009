"""Blocking storage calls, off the event loop and only once the database is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from app.errors import StorageUnavailable

T = TypeVar("T")
logger = logging.getLogger(__name__)

# As many as the database has connections: a slow database must not use up the threads of everything else.
_THREADS = 16


@dataclass(frozen=True, slots=True)
class _Write:
    """A call that waits to be made, and who waits for its result."""

    call: Callable[[], Any]
    future: asyncio.Future[Any]


class StorageThreads:
    """Runs storage calls in worker threads of their own.

    Until `open` is called every call is refused, so that nothing meets a schema that is not there yet.

    Args:
        together: Around calls whose transactions are committed as one (`Database.together`).
    """

    def __init__(self, together: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._together = together
        self._waiting: list[_Write] = []
        self._writer: asyncio.Task[None] | None = None
        self._opened = False

    def open(self) -> None:
        """The schema is up to date."""
        self._opened = True

    @property
    def opened(self) -> bool:
        """Whether calls are let through."""
        return self._opened

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """The result of ``function(*args)``, called in a worker thread.

        Raises:
            StorageUnavailable: The database has not been opened yet, or does not answer.
        """
        self._check_open()
        return await anyio.to_thread.run_sync(lambda: function(*args), limiter=self._limiter)

    async def write(self, function: Callable[..., T], *args: object) -> T:
        """The same for a call that writes to the database; it returns once that is committed.

        While one commit is under way, the writes that come in gather, and the next commit is for all of them
        (group commit). They are made in the order in which they came.

        Raises:
            StorageUnavailable: Nothing of this call was kept.
        """
        self._check_open()
        write = _Write(lambda: function(*args), asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        result: T = await write.future
        return result

    def _check_open(self) -> None:
        if not self._opened:
            raise StorageUnavailable("The database is not open yet. Please try again.", retry_after=2.0)

    async def _write_all(self) -> None:
        while self._waiting:
            writes, self._waiting = self._waiting, []
            calls = [write.call for write in writes]
            outcomes = await anyio.to_thread.run_sync(self._commit, calls, limiter=self._limiter)
            for write, outcome in zip(writes, outcomes, strict=True):
                _tell(write.future, outcome)

    def _commit(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each call returned or raised; runs in a worker thread."""
        if len(calls) > 1:
            try:
                with self._together():
                    return [call() for call in calls]
            except Exception:
                logger.info("writes that came together are made one by one", exc_info=True)
        # Nothing was kept: each for itself, so that none takes another with it.
        return [_attempt(call) for call in calls]


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # handed to whoever waits for this call
        return error


def _tell(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
