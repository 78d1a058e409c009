"""Waiting for pictures on behalf of a reader who takes nothing but the finished ones."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
from starlette.requests import Request

from app.errors import DarkroomError, GenerationError, OutOfMemory, PictureWithheld, ShuttingDown
from app.services.views import GenerationView
from app.web.dependencies import services_of


async def finished_pictures(
    request: Request, ids: Sequence[str]
) -> list[tuple[GenerationView, bytes]] | None:
    """The final states of generations, each with its PNG; None if the reader left before.

    A reader who leaves stops watching, so that the lease of the generations runs out.

    Raises:
        GenerationError: One of them came to nothing (`ShuttingDown` if the process ends).
        StorageUnavailable: A picture cannot be read.
    """
    done: dict[str, tuple[GenerationView, bytes]] = {}
    failures: list[DarkroomError] = []

    async def watch(id_: str) -> None:
        try:
            async for view in services_of(request).generations.watch(id_):
                if view.final and view.image is not None:
                    done[id_] = (view, view.image)
                elif view.final:
                    failures.append(failure_of(view))
        except DarkroomError as error:
            failures.append(error)
        if failures or len(done) == len(ids):  # Nobody takes a part of what was asked for.
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for id_ in ids:
            group.start_soon(watch, id_)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return [done[id_] for id_ in ids] if len(done) == len(ids) else None


def failure_of(view: GenerationView) -> DarkroomError:
    """Why a generation has no picture."""
    message = view.error_message or "The picture could not be made."
    for error in (ShuttingDown, OutOfMemory, PictureWithheld):
        if view.error_code == error.code:
            return error(message)
    return GenerationError(message)
