"""Generations that are being made: their newest state, and who watches.

All of it lives on the event loop. A watcher holds a `Subscription`; publishing wakes it, and it then looks at
the newest state: a slow reader skips what it missed instead of building a backlog, and the final state stays
there to be seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from app.services.views import GenerationView
from app.storage.records import GenerationRecord


class Subscription:
    """Wakes one watcher when any of its generations changes."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Something changed."""
        self._changed.set()

    def clear(self) -> None:
        """What changed so far is about to be looked at."""
        self._changed.clear()

    async def wait(self) -> None:
        """Return when something has changed since `clear`."""
        await self._changed.wait()


class LiveGeneration:
    """One unfinished generation.

    Args:
        record: The row, as it was inserted; kept up to date by the service.
        view: The first state.
        share_key: Whose share of the queue it takes.
        lease: Whether it ends when its readers stay away (`/generate`).
        on_unwatched: Called after the last watcher left, and once at the beginning.
    """

    def __init__(
        self,
        record: GenerationRecord,
        view: GenerationView,
        *,
        share_key: str,
        lease: bool,
        on_unwatched: Callable[[LiveGeneration], None],
    ) -> None:
        self.record = record
        self.view = view
        self.share_key = share_key
        self.lease = lease
        self.timer: asyncio.TimerHandle | None = None
        self.asked_at = time.monotonic()
        self.previewed = False
        self.ending = False
        self.abort_message: str | None = None
        self._on_unwatched = on_unwatched
        self._subscriptions: set[Subscription] = set()

    @property
    def watchers(self) -> int:
        """How many watch right now."""
        return len(self._subscriptions)

    @contextmanager
    def watched(self, subscription: Subscription) -> Iterator[None]:
        """Counts a watcher and wakes it at every change."""
        self._subscriptions.add(subscription)
        self.stop_timer()
        try:
            yield
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions and not self.view.final:
                self._on_unwatched(self)

    def publish(self, **changes: Any) -> None:
        """Make a new state and wake the watchers; nothing follows a final one."""
        if self.view.final:
            return
        self.view = replace(self.view, **changes)
        if self.view.final:
            self.stop_timer()
        for subscription in self._subscriptions:
            subscription.notify()

    def stop_timer(self) -> None:
        """Somebody watches, or it has ended."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
