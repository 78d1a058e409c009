"""Server-sent events: messages as bytes, and the response that sends them.

Messages are built here once per state and shared by all its watchers; the hot path is one `json.dumps`.
Line ends are LF. `sse_starlette` sends bytes as they are; it adds pings, the timeout for readers that take
nothing, and the watch for disconnects. Its own reaction to signals is switched off: this application ends its
streams itself (`GenerationService.begin_shutdown`), each with a final event.
"""

from __future__ import annotations

import json
import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import Header
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.errors import InvalidRequest
from app.services.views import GenerationView
from app.web.dependencies import services_of

logger = logging.getLogger(__name__)
AppStatus.enable_automatic_graceful_drain = False

_LAST_EVENT_ID = re.compile(r"([A-Za-z0-9_-]{1,64}):(\d{1,4})")
LastEventId = Annotated[
    str | None, Header(description="<generation>:<step> of the last message before a connection was lost.")
]
_messages: WeakKeyDictionary[GenerationView, bytes] = WeakKeyDictionary()


class EventStream(EventSourceResponse):
    """A stream that ends quietly when its reader takes nothing for too long."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a reader took nothing for too long; its stream was ended")


def stream(request: Request, messages: AsyncIterator[bytes]) -> EventStream:
    """The response that sends `messages`, each complete with its line ends."""
    services = services_of(request)
    return EventStream(
        messages,
        sep="\n",
        ping=services.ping_seconds,
        ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
        send_timeout=services.send_timeout_seconds,
    )


def message(data: str, *, event: str | None = None, id_: str | None = None) -> bytes:
    """One message; every line of `data` gets its own field."""
    fields = [] if event is None else [f"event: {event}"]
    if id_ is not None:
        fields.append(f"id: {id_}")
    fields += [f"data: {line}" for line in data.split("\n")]
    return ("\n".join(fields) + "\n\n").encode()


def parse_last_event_id(value: str) -> tuple[str, int]:
    """The generation and the step of a `Last-Event-ID`.

    Raises:
        InvalidRequest: It is none that this service gave.
    """
    found = _LAST_EVENT_ID.fullmatch(value)
    if found is None:
        raise InvalidRequest(
            "Last-Event-ID: must look like <generation>:<step>, as this service sent it",
            field="Last-Event-ID",
        )
    return found[1], int(found[2])


async def generation_messages(
    states: AsyncIterator[GenerationView], after_step: int = -1
) -> AsyncIterator[bytes]:
    """The JSON stream of one generation: queued, previews, the final one, `[DONE]`.

    Args:
        states: From `GenerationService.watch`.
        after_step: Steps up to this one were seen before the connection was lost.
    """
    async with aclosing(states) as views:  # type: ignore[type-var]
        async for view in views:
            if view.final or _tells(view, after_step):
                yield generation_message(view)
            if view.final:
                yield message("[DONE]", id_=_id(view))


def _tells(view: GenerationView, after_step: int) -> bool:
    """Whether an unfinished state is worth a message.

    The last step's preview is not sent: the final picture follows at once, and must have an id of its own, so
    that a reader who lost it is not taken for one who has it.
    """
    if view.state == "waiting":
        return view.place is not None and after_step < 0
    return after_step < view.step < view.steps and view.step > 0


def generation_message(view: GenerationView) -> bytes:
    """The message of one state; built once, however many watch."""
    built = _messages.get(view)
    if built is None:
        event = "queued" if view.state == "waiting" else None
        built = _messages[view] = message(json.dumps(_payload(view)), event=event, id_=_id(view))
    return built


def _id(view: GenerationView) -> str:
    return f"{view.id}:{view.step}"


def _payload(view: GenerationView) -> dict[str, Any]:
    if view.state in ("failed", "cancelled"):
        return {
            "error": {"code": view.error_code, "message": view.error_message},
            "done": True,
            "generation_id": view.id,
            "model_id": view.model_id,
            "seed": view.seed,
            "notices": list(view.notices),
        }
    done = view.state == "done"
    image = view.image if done else view.preview
    payload: dict[str, Any] = {
        "step": view.step,
        "total_steps": view.steps,
        "progress": view.progress,
        "image": None if image is None else b64encode(image).decode(),
        "model": view.model,
        "done": done,
        "generation_id": view.id,
        "model_id": view.model_id,
        "seed": view.seed,
        "image_format": None if image is None else ("png" if done else "jpeg"),
        "bytes": None if image is None else len(image),
        "seconds": None if view.seconds is None else round(view.seconds, 3),
        "notices": list(view.notices),
    }
    if view.state == "waiting":
        payload["place"] = view.place
    elif not done:
        payload["seconds_left"] = None if view.seconds_left is None else round(view.seconds_left, 3)
    else:
        payload["image_url"] = view.image_url
    return payload
