"""Make pictures: admit, queue, watch, keep."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import anyio.to_thread

from app.backends.base import Backend
from app.catalog.entry import Catalog, CatalogEntry
from app.engine.request import (
    Aborted,
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Progress,
    Started,
    Waiting,
)
from app.errors import (
    DarkroomError,
    Forbidden,
    GenerationError,
    InvalidRequest,
    ModelNotReady,
    NotFound,
    ShuttingDown,
    StorageUnavailable,
    TooManyRequests,
)
from app.services.clients import Client
from app.services.figures import GenerationFigures
from app.services.live import LiveGeneration, Subscription
from app.services.params import GenerationParams, ResolvedParams, resolve
from app.services.pictures import encode_png, made_with
from app.services.storage import StorageThreads
from app.services.views import BatchView, GenerationView
from app.storage.generations import GenerationRepository
from app.storage.images import ImageStore
from app.storage.records import GenerationRecord
from app.storage.votes import VoteRepository

logger = logging.getLogger(__name__)
UnknownWords = Callable[[CatalogEntry, str], Sequence[str]]
"""The words of a prompt that a model was never taught."""

_Keep = Callable[[], Awaitable[object]]
"""Writes down what became of a generation; called again if the storage did not answer."""

_ID_BYTES = 16
_POLL_SECONDS = 1.0
_CANCEL_WAIT_SECONDS = 5.0
_KEEP_RETRIES_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_UNKEPT_LIMIT = 64
_NOT_KEPT = "This picture could not be kept: the storage does not answer. Save it now."
_STOPPED = "The server is stopping; please ask again in a moment."


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationLimits:
    """How much is taken on.

    Attributes:
        queue: Most generations that may wait or run.
        client_share: Most of them that one client (cookie, else address) may hold.
        reader_grace_seconds: How long a reader of `/generate` may be away.
        unwatched_seconds: How long a waiting one may be watched by nobody.
    """

    queue: int = 64
    client_share: int = 24
    reader_grace_seconds: float = 3.0
    unwatched_seconds: float = 600.0


class GenerationService:
    """Creates generations, lets them be watched, keeps what comes of them.

    All methods run on the event loop; storage and PNG encoding run in worker threads.

    Args:
        catalog: What can be generated with.
        backend: What runs a request.
        generations: Rows.
        votes: For the viewer's own vote in a view.
        images: Files.
        storage: Where calls to these three run.
        owner: Id of this process in the rows.
        limits: How much is taken on.
        unknown_words: Tells which words of a prompt a model does not know.
    """

    def __init__(
        self,
        catalog: Catalog,
        backend: Backend,
        generations: GenerationRepository,
        votes: VoteRepository,
        images: ImageStore,
        storage: StorageThreads,
        *,
        owner: str,
        limits: GenerationLimits,
        unknown_words: UnknownWords,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._generations = generations
        self._votes = votes
        self._images = images
        self._storage = storage
        self._owner = owner
        self.limits = limits
        self._unknown_words = unknown_words
        self._live: dict[str, LiveGeneration] = {}
        # Finals whose row or file could not be written, still shown from memory; the oldest goes first.
        self._unkept: OrderedDict[str, LiveGeneration] = OrderedDict()
        self._starting: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._closed = False
        self._encoders = anyio.CapacityLimiter(2)
        self.figures = GenerationFigures(entry.id for entry in catalog.entries)

    # ------------------------------------------------------------------ create

    async def create(
        self, params: GenerationParams, client: Client, *, n: int = 1, lease: bool = False
    ) -> BatchView:
        """Admit and queue `n` pictures, seeds seed … seed+n−1.

        Args:
            params: As asked; everything is checked here.
            client: Who asks.
            n: 1 … 8.
            lease: The pictures end when their readers stay away for the grace period.

        Raises:
            InvalidRequest: A field is wrong (`UnknownModel` for the model).
            TooManyRequests: The queue is full, or the client's share of it.
            ModelNotReady: The model failed to load, or was unloaded. While it loads, requests wait for it.
            StorageUnavailable: Nothing was written or queued.
            ShuttingDown: The process is ending.
        """
        if self._stopping:
            self.figures.refused["stopping"] += 1
            raise ShuttingDown(_STOPPED, retry_after=5.0)
        resolved = resolve(params, self._catalog, n=n)
        self._check_model(resolved.entry)
        self._admit(client, n)
        lives = self._make_lives(resolved, client, n, lease)
        # They count from here on, so that a burst cannot pass the limit while rows are being written.
        self._live.update((live.record.id, live) for live in lives)
        try:
            await self._storage.write(self._generations.insert_many, [live.record for live in lives])
        except BaseException as error:
            self._forget(lives)
            if not isinstance(error, DarkroomError):
                # Cancelled while the thread wrote: rows may be there that nobody will run.
                self._spawn(self._cancel_rows([live.record.id for live in lives]))
            raise
        for live in lives:
            self._queue(live, resolved)
        return BatchView(id=lives[0].record.id, generations=tuple(replace(v.view, mine=True) for v in lives))

    def _check_model(self, entry: CatalogEntry) -> None:
        backend = self._backend.status()
        status = next((status for status in backend.models if status.id == entry.id), None)
        name = self._catalog.public_name(entry)
        if status is not None and status.state == "failed":
            self._refuse_model(f"{name} could not be loaded: {status.error or 'unknown reason'}")
        if status is not None and status.state in ("unloading", "unloaded") and not backend.on_demand:
            others = [self._public_name(other.id) for other in backend.models if other.state == "ready"]
            hint = f"; loaded are {', '.join(others)}" if others else ""
            self._refuse_model(f"{name} is not loaded{hint}")

    def _refuse_model(self, message: str) -> NoReturn:
        self.figures.refused["model_not_ready"] += 1
        raise ModelNotReady(f"model: {message}", field="model", retry_after=60.0)

    def _admit(self, client: Client, n: int) -> None:
        # What somebody made before the cookie came back is theirs as well.
        held = sum(
            1
            for live in self._live.values()
            if live.share_key == client.share_key or live.record.client == client.id
        )
        if held + n > self.limits.client_share:
            self.figures.refused["client_share"] += 1
            raise TooManyRequests(
                f"you have {held} pictures waiting or running; at most {self.limits.client_share} at a time",
                retry_after=self._retry_after(),
            )
        if len(self._live) + n > self.limits.queue:
            self.figures.refused["queue_full"] += 1
            raise TooManyRequests(
                f"the queue is full: at most {self.limits.queue} pictures wait or run",
                retry_after=self._retry_after(),
            )

    def _retry_after(self) -> float:
        """Whole seconds until a place should be free: when the next running one is expected to end."""
        left = [v.view.seconds_left for v in self._live.values() if v.view.seconds_left is not None]
        return float(min(60, max(1, math.ceil(min(left, default=2.0)))))

    def _make_lives(
        self, resolved: ResolvedParams, client: Client, n: int, lease: bool
    ) -> list[LiveGeneration]:
        ids = [secrets.token_urlsafe(_ID_BYTES) for _ in range(n)]
        notices = self._vocabulary_notices(resolved)
        lives = []
        for position, id_ in enumerate(ids):
            record = GenerationRecord(
                id=id_,
                batch_id=ids[0],
                position=position,
                client=client.id,
                owner=self._owner,
                state="waiting",
                model=resolved.entry.id,
                revision="",
                prompt=resolved.prompt,
                negative_prompt=resolved.negative_prompt,
                seed=resolved.seed + position,
                steps=resolved.steps,
                guidance_scale=resolved.guidance_scale,
                eta=resolved.eta,
                width=resolved.width,
                height=resolved.height,
                noise_scheduler=resolved.noise_scheduler,
                created_at=datetime.now(UTC),
                notices=notices,
            )
            lives.append(
                LiveGeneration(
                    record,
                    self._view(record),
                    share_key=client.share_key,
                    lease=lease,
                    on_unwatched=self._start_timer,
                )
            )
        return lives

    def _vocabulary_notices(self, resolved: ResolvedParams) -> tuple[str, ...]:
        words = self._unknown_words(resolved.entry, resolved.prompt)
        if not words:
            return ()
        shown = ", ".join(f"“{word[:40]}”" for word in words[:8])
        return (f"The model does not know these words: {shown}.",)

    def _queue(self, live: LiveGeneration, resolved: ResolvedParams) -> None:
        record = live.record
        request = GenerationRequest(
            id=record.id,
            model=record.model,
            prompt=record.prompt,
            negative_prompt=record.negative_prompt,
            seed=record.seed,
            steps=record.steps,
            guidance_scale=record.guidance_scale,
            eta=record.eta,
            width=record.width,
            height=record.height,
            noise_scheduler=record.noise_scheduler,
            preview=resolved.preview,
        )
        if not live.watchers:
            self._start_timer(live)
        try:
            self._backend.add_request(request, lambda event: self._heard(live, event))
        except DarkroomError as error:
            self._heard(live, Failed(error))
        except Exception:
            logger.exception("the backend did not take a request")
            self._heard(live, Failed(GenerationError("The picture could not be started.")))

    def _forget(self, lives: Sequence[LiveGeneration]) -> None:
        for live in lives:
            live.stop_timer()
            self._live.pop(live.record.id, None)

    async def _cancel_rows(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            try:
                await self._storage.write(self._generations.cancel, id_)
            except StorageUnavailable:
                logger.warning("a generation that was never queued may stay in the table until restart")

    # ------------------------------------------------------------------ leases

    def _start_timer(self, live: LiveGeneration) -> None:
        """Nobody watches: end it when that has lasted too long."""
        live.stop_timer()
        if live.ending or self._closed:
            return
        delay = self.limits.reader_grace_seconds if live.lease else self.limits.unwatched_seconds
        live.timer = asyncio.get_running_loop().call_later(delay, self._unwatched, live)

    def _unwatched(self, live: LiveGeneration) -> None:
        live.timer = None
        if live.watchers or live.view.final:
            return
        # What a page asked for and has begun is finished even if nobody looks: people come back to it.
        if live.lease or live.view.state == "waiting":
            self._abort(live, "Cancelled: nobody was watching any more.")

    def _abort(self, live: LiveGeneration, message: str) -> None:
        if live.ending:
            return
        live.abort_message = live.abort_message or message
        self._backend.abort_request(live.record.id)

    # ------------------------------------------------------------------ events of the backend

    def _heard(self, live: LiveGeneration, event: GenerationEvent) -> None:
        """The backend's listener; runs on the event loop and must be quick."""
        if live.ending:
            return
        match event:
            case Waiting(place):
                live.publish(place=place)
            case Started(_, notices):
                live.record = replace(live.record, state="running", notices=live.record.notices + notices)
                live.publish(state="running", place=None, notices=live.record.notices)
                self.figures.waits[live.record.model].observe(time.monotonic() - live.asked_at)
                self._mark_running(live)
            case Progress():
                if event.preview is not None and not live.previewed:
                    live.previewed = True
                    self.figures.first_previews[live.record.model].observe(time.monotonic() - live.asked_at)
                live.publish(
                    step=event.step,
                    preview=event.preview or live.view.preview,
                    seconds=event.seconds,
                    seconds_left=event.seconds_left,
                )
            case Finished() | Failed() | Aborted():
                live.ending = True
                self._spawn(self._end(live, event))

    def _mark_running(self, live: LiveGeneration) -> None:
        """Write down that it runs, in one statement with those that start in the same moment."""
        if not self._starting:
            self._spawn(self._mark_starting())
        self._starting.append(live.record.id)

    async def _mark_starting(self) -> None:
        starting, self._starting = self._starting, []
        await self._try(lambda: self._storage.write(self._generations.mark_running, starting))

    async def _end(self, live: LiveGeneration, event: Finished | Failed | Aborted) -> None:
        """Keep what came of it, then tell; if keeping fails, tell all the same and try again later."""
        changes, keep = await self._outcome(live, event)
        if self._stopping and changes["state"] != "done":
            live.publish(**changes)  # The process ends soon: readers first.
        kept = await self._try(keep)
        if changes["state"] == "done" and kept:
            changes["image_url"] = f"/images/{live.record.id}.png"
        elif changes["state"] == "done":
            changes["notices"] = (*live.view.notices, _NOT_KEPT)
        self.figures.ended[live.record.model, changes["state"]] += 1
        if changes["state"] == "done":
            self.figures.wholes[live.record.model].observe(time.monotonic() - live.asked_at)
        live.publish(**changes)
        self._forget([live])
        if not kept:
            self._spawn(self._keep_later(live, keep))

    async def _outcome(
        self, live: LiveGeneration, event: Finished | Failed | Aborted
    ) -> tuple[dict[str, Any], _Keep]:
        """What the watchers will see, and how it is kept."""
        record = live.record
        now = datetime.now(UTC)
        if isinstance(event, Finished):
            try:
                return await self._finished(live, event, now)
            except Exception:
                # Whatever it was: the readers wait for an end.
                logger.exception("the final picture could not be encoded")
                event = Failed(GenerationError("The picture could not be encoded."))
        if isinstance(event, Failed):
            error = event.error
            return (
                {
                    "state": "failed",
                    "error_code": error.code,
                    "error_message": error.message,
                    "finished_at": now,
                    "place": None,
                    "seconds_left": None,
                },
                lambda: self._storage.write(self._generations.fail, record.id, error.code, error.message),
            )
        return (
            {
                "state": "cancelled",
                "error_code": "cancelled",
                "error_message": live.abort_message or "Cancelled.",
                "finished_at": now,
                "place": None,
                "seconds_left": None,
            },
            lambda: self._storage.write(self._generations.cancel, record.id),
        )

    async def _finished(
        self, live: LiveGeneration, event: Finished, now: datetime
    ) -> tuple[dict[str, Any], _Keep]:
        record = replace(
            live.record,
            state="done",
            revision=event.revision,
            versions=made_with(event),
            seconds=event.seconds,
            finished_at=now,
        )
        png = await anyio.to_thread.run_sync(encode_png, event.pixels, record, limiter=self._encoders)
        record = replace(record, image_bytes=len(png))
        live.record = record

        finish = partial(
            self._generations.finish,
            record.id,
            revision=record.revision,
            versions=record.versions,
            seconds=event.seconds,
            image_bytes=len(png),
            notices=record.notices,
            finished_at=now,
        )

        async def keep() -> None:
            await self._storage.run(self._images.put, image_key(record.id), png)
            await self._storage.write(finish)

        changes = {
            "state": "done",
            "step": record.steps,
            "image": png,
            "image_bytes": len(png),
            "seconds": event.seconds,
            "seconds_left": 0.0,
            "place": None,
            "finished_at": now,
            "revision": event.revision,
            "dtype": event.dtype,
            "device": event.device,
            "alone": event.alone,
        }
        return changes, keep

    async def _try(self, keep: _Keep) -> bool:
        try:
            await keep()
        except StorageUnavailable:
            logger.warning("what became of a generation could not be written down yet")
            return False
        except Exception:
            # A mistake of ours must not leave the readers without an end.
            logger.exception("what became of a generation could not be written down")
            return False
        return True

    async def _keep_later(self, live: LiveGeneration, keep: _Keep) -> None:
        id_ = live.record.id
        self._unkept[id_] = live
        while len(self._unkept) > _UNKEPT_LIMIT:
            self._unkept.popitem(last=False)
        for delay in _KEEP_RETRIES_SECONDS[1:]:
            await asyncio.sleep(delay)
            if await self._try(keep):
                self._unkept.pop(id_, None)
                return
        logger.error("the outcome of a generation could not be kept")

    # ------------------------------------------------------------------ look

    async def get(self, generation_id: str, viewer: str | None = None) -> GenerationView:
        """One picture right now, with the viewer's vote.

        Raises:
            NotFound: There is none of that id.
            StorageUnavailable: It cannot be looked up.
        """
        live = self._in_memory(generation_id)
        if live is not None:
            return replace(live.view, mine=live.record.client == viewer)
        record = await self._record(generation_id)
        (view,) = await self._for_viewer([record], viewer)
        return view

    async def batch(self, batch_id: str, viewer: str | None = None) -> BatchView:
        """All pictures of one request.

        Raises:
            NotFound: There is no such batch.
        """
        batch, _ = await self._batch(batch_id, viewer)
        return batch

    async def _batch(self, batch_id: str, viewer: str | None) -> tuple[BatchView, list[LiveGeneration]]:
        # Those that live are looked up first: one that ends while the rows are read would be missed by both.
        in_memory = [*self._live.values(), *self._unkept.values()]
        lives = [live for live in in_memory if live.record.batch_id == batch_id]
        records = await self._storage.run(self._generations.of_batch, batch_id)
        if not records:
            raise NotFound("no such batch")
        views = await self._for_viewer(records, viewer)
        return _newest(BatchView(id=batch_id, generations=tuple(views)), lives), lives

    async def recent(self, viewer: str, limit: int = 12) -> list[GenerationView]:
        """The viewer's newest finished pictures, newest first."""
        records = await self._storage.run(self._generations.recent, viewer, ("done",), limit)
        return await self._for_viewer(records, viewer)

    async def newest_unfinished(self, viewer: str) -> BatchView | None:
        """The viewer's newest batch that is not done yet: what a page that is opened again shows."""
        record = await self._storage.run(self._generations.newest_unfinished, viewer)
        return None if record is None else await self.batch(record.batch_id, viewer)

    async def image(self, generation_id: str) -> bytes:
        """The final picture as PNG bytes.

        Raises:
            NotFound: There is no such picture (yet).
        """
        unkept = self._unkept.get(generation_id)
        if unkept is not None and unkept.view.image is not None:
            return unkept.view.image
        try:
            return await self._storage.run(self._images.get, image_key(generation_id))
        except NotFound:
            raise NotFound("no such picture") from None

    # ------------------------------------------------------------------ watch

    def is_live(self, generation_id: str) -> bool:
        """Whether this process is making it right now."""
        return generation_id in self._live

    async def watch(self, generation_id: str) -> AsyncIterator[GenerationView]:
        """Its states, the newest first seen first; ends after the final one, which always comes.

        A slow reader gets the newest state, not a backlog. A finished one gives its final state at once, with
        the picture in `image`.

        Raises:
            NotFound: There is none of that id.
        """
        live = self._in_memory(generation_id)
        if live is None:
            async for view in self._watch_stored(generation_id):
                yield view
            return
        subscription = Subscription()
        with live.watched(subscription):
            while True:
                subscription.clear()
                view = live.view
                yield view
                if view.final:
                    return
                await subscription.wait()

    async def watch_batch(self, batch_id: str, viewer: str | None = None) -> AsyncIterator[BatchView]:
        """The states of a whole batch, newest only; ends after the one in which all are final.

        Raises:
            NotFound: There is no such batch.
        """
        batch, lives = await self._batch(batch_id, viewer)
        subscription = Subscription()
        with ExitStack() as stack:
            for live in lives:
                stack.enter_context(live.watched(subscription))
            ids = {live.record.id for live in lives}
            while not (batch := _newest(batch, lives)).final:
                subscription.clear()
                yield batch
                if any(not generation.final and generation.id in ids for generation in batch.generations):
                    await subscription.wait()
                else:
                    await asyncio.sleep(_POLL_SECONDS)
                    batch = await self.batch(batch_id, viewer)
        yield batch

    async def _watch_stored(self, generation_id: str) -> AsyncIterator[GenerationView]:
        """One that this process does not make: finished, or made by another process on the same database."""
        shown = None
        while True:
            record = await self._record(generation_id)
            if record.state != shown:
                shown = record.state
                view = self._view(record)
                if view.state == "done":
                    view = replace(view, image=await self._stored_image(record))
                yield view
                if view.final:
                    return
            await asyncio.sleep(_POLL_SECONDS)

    async def _stored_image(self, record: GenerationRecord) -> bytes | None:
        try:
            return await self.image(record.id)
        except NotFound:
            return None

    # ------------------------------------------------------------------ end

    async def cancel(self, generation_id: str, viewer: str | None = None) -> GenerationView:
        """Stop it within one step; returns its state then. Ended ones stay as they are.

        Raises:
            NotFound: There is none of that id.
        """
        live = self._live.get(generation_id)
        if live is not None:
            self._abort(live, "Cancelled.")
            try:
                async with asyncio.timeout(_CANCEL_WAIT_SECONDS):
                    await _ended(live)
            except TimeoutError:
                logger.warning("a cancelled generation has not stopped yet")
        return await self.get(generation_id, viewer)

    async def cancel_batch(self, batch_id: str, viewer: str | None = None) -> BatchView:
        """Stop all pictures of a batch that have not ended.

        Raises:
            NotFound: There is no such batch.
        """
        batch = await self.batch(batch_id, viewer)
        await asyncio.gather(*(self.cancel(generation.id) for generation in batch.generations))
        return await self.batch(batch_id, viewer)

    async def delete(self, generation_id: str, viewer: str, *, admin: bool = False) -> None:
        """Delete a finished one with its picture. Votes on it keep their own copy of its recipe.

        Raises:
            NotFound: There is none of that id.
            Forbidden: The viewer did not make it and is no admin.
            InvalidRequest: It has not ended.
        """
        view = await self.get(generation_id, viewer)
        if not view.final:
            raise InvalidRequest("the picture has not ended; cancel it first", field="id")
        if not (view.mine or admin):
            raise Forbidden("only its maker may delete a picture")
        self._unkept.pop(generation_id, None)
        await self._storage.run(self._generations.delete, generation_id)
        await self._storage.run(self._images.delete, image_key(generation_id))

    # ------------------------------------------------------------------ figures, shutdown

    @property
    def unfinished(self) -> int:
        """How many wait or run."""
        return len(self._live)

    @property
    def unfinished_by_model(self) -> Counter[tuple[str, str]]:
        """How many wait or run, by model and state."""
        return Counter((live.record.model, live.view.state) for live in self._live.values())

    @property
    def watchers(self) -> int:
        """How many watch right now."""
        return sum(live.watchers for live in self._live.values())

    @property
    def stopping(self) -> bool:
        """Whether new ones are refused because the process is ending."""
        return self._stopping

    def begin_shutdown(self) -> None:
        """Refuse new ones and end those that there are: every reader gets a final state at once."""
        if self._stopping:
            return
        self._stopping = True
        for live in list(self._live.values()):
            self._backend.abort_request(live.record.id)
            self._heard(live, Failed(ShuttingDown(_STOPPED)))

    async def close(self, timeout: float = 5.0) -> None:
        """Wait until the last writes are done, at most `timeout` seconds."""
        self.begin_shutdown()
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ helpers

    def _in_memory(self, generation_id: str) -> LiveGeneration | None:
        return self._live.get(generation_id) or self._unkept.get(generation_id)

    async def _record(self, generation_id: str) -> GenerationRecord:
        record = await self._storage.run(self._generations.get, generation_id)
        if record is None:
            raise NotFound("no such generation")
        return record

    async def _for_viewer(
        self, records: Sequence[GenerationRecord], viewer: str | None
    ) -> list[GenerationView]:
        votes: dict[str, int] = {}
        finished = [record.id for record in records if record.state == "done"]
        if viewer is not None and finished:
            votes = await self._storage.run(self._thumbs, viewer, finished)
        views = []
        for record in records:
            live = self._in_memory(record.id)
            view = live.view if live is not None else self._view(record)
            views.append(replace(view, mine=record.client == viewer, vote=votes.get(record.id)))
        return views

    def _thumbs(self, viewer: str, ids: Sequence[str]) -> dict[str, int]:
        found = self._votes.of_voter(viewer, ids)
        return {v.shown[0]: v.value for v in found if v.kind == "thumb" and v.value is not None}

    def _view(self, record: GenerationRecord) -> GenerationView:
        done = record.state == "done"
        return GenerationView(
            id=record.id,
            batch_id=record.batch_id,
            position=record.position,
            state=record.state,
            model=self._public_name(record.model),
            model_id=record.model,
            prompt=record.prompt,
            negative_prompt=record.negative_prompt,
            seed=record.seed,
            steps=record.steps,
            step=record.steps if done else 0,
            width=record.width,
            height=record.height,
            guidance_scale=record.guidance_scale,
            eta=record.eta,
            noise_scheduler=record.noise_scheduler,
            created_at=record.created_at,
            finished_at=record.finished_at,
            seconds=record.seconds,
            seconds_left=0.0 if done else None,
            image_url=f"/images/{record.id}.png" if done else None,
            image_bytes=record.image_bytes,
            notices=record.notices,
            error_code=record.error_code or ("cancelled" if record.state == "cancelled" else None),
            error_message=record.error_message or ("Cancelled." if record.state == "cancelled" else None),
            revision=record.revision,
            dtype=str(record.versions.get("dtype", "")),
            device=str(record.versions.get("device", "")),
            alone=bool(record.versions.get("alone", False)),
        )

    def _public_name(self, model_id: str) -> str:
        for entry in self._catalog.entries:
            if entry.id == model_id:
                return self._catalog.public_name(entry)
        return model_id.rpartition("/")[2]

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _newest(batch: BatchView, lives: Sequence[LiveGeneration]) -> BatchView:
    """The batch with the newest state of those that live; whose they are and the votes stay."""
    states = {live.record.id: live.view for live in lives}
    generations = tuple(
        replace(states[old.id], mine=old.mine, vote=old.vote) if old.id in states else old
        for old in batch.generations
    )
    return replace(batch, generations=generations)


def image_key(generation_id: str) -> str:
    """The picture's key in the image store; what is no id is no key there either, and not found."""
    return f"{generation_id}.png"


async def _ended(live: LiveGeneration) -> None:
    subscription = Subscription()
    with live.watched(subscription):
        while not live.view.final:
            subscription.clear()
            await subscription.wait()
