"""Blocking storage calls, off the event loop and only once the database is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from app.errors import StorageUnavailable

T = TypeVar("T")

# As many as the database has connections: a slow database must not use up the threads of everything else.
_THREADS = 16


class StorageThreads:
    """Runs storage calls in worker threads of their own.

    Until `open` is called every call is refused, so that nothing meets a schema that is not there yet.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_THREADS)
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
        if not self._opened:
            raise StorageUnavailable("The database is not open yet. Please try again.", retry_after=2.0)
        return await anyio.to_thread.run_sync(lambda: function(*args), limiter=self._limiter)
