"""`/generations`: pictures that outlive the reader who asked for them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.web import pages
from app.web.bodies import is_form, read_json, schema_of
from app.web.dependencies import client_of, is_admin, services_of, wants_html
from app.web.schemas import GenerationsBody, ProblemAnswer, batch_json, generation_json
from app.web.sse import LastEventId, generation_messages, parse_last_event_id, stream

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer} for status in (400, 403, 404, 413, 415, 422, 429, 503)
}
router = APIRouter(tags=["generations"])


@router.post(
    "/generations",
    status_code=201,
    response_class=JSONResponse,
    responses=_PROBLEMS,
    openapi_extra=schema_of(GenerationsBody),
)
async def create(request: Request) -> Response:
    """Make n pictures, with seeds seed … seed+n−1. They are finished even if nobody watches."""
    if is_form(request):
        return await pages.develop(request)
    body = await read_json(request, GenerationsBody)
    batch = await services_of(request).generations.create(body.params(), client_of(request), n=body.n)
    headers = {"Location": f"/generations/{batch.id}"}
    return JSONResponse(batch_json(batch), status_code=201, headers=headers)


@router.get("/generations/{generation_id}", response_class=JSONResponse, responses=_PROBLEMS)
async def show(request: Request, generation_id: str) -> Response:
    """How one picture is right now."""
    view = await services_of(request).generations.get(generation_id, client_of(request).id)
    return JSONResponse(generation_json(view), headers={"Cache-Control": "no-store"})


@router.delete(
    "/generations/{generation_id}",
    response_class=JSONResponse,
    responses={**_PROBLEMS, 204: {"description": "It had ended, and is deleted with its picture."}},
)
async def delete(request: Request, generation_id: str) -> Response:
    """Cancel one that has not ended; delete one that has (its maker, or an admin)."""
    generations = services_of(request).generations
    viewer = client_of(request).id
    view = await generations.get(generation_id, viewer)
    if view.final and not wants_html(request):
        await generations.delete(generation_id, viewer, admin=is_admin(request))
        return Response(status_code=204)
    view = await generations.cancel(generation_id, viewer)
    if wants_html(request):
        return await pages.changed(request, view)
    return JSONResponse(generation_json(view))


@router.get(
    "/generations/{generation_id}/events",
    response_class=Response,
    responses={**_PROBLEMS, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(request: Request, generation_id: str, last_event_id: LastEventId = None) -> Response:
    """Watch one; with Last-Event-ID only what is newer. A finished one gives its final message again."""
    generations = services_of(request).generations
    await generations.get(generation_id)
    after = -1
    if last_event_id:
        seen_id, step = parse_last_event_id(last_event_id)
        after = step if seen_id == generation_id else -1
    return stream(request, generation_messages(generations.watch(generation_id), after_step=after))
