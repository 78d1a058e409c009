"""`/generate`: one picture, watched by the reader who asked for it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.errors import NotFound
from app.services.params import GenerationParams
from app.web.bodies import read_json, schema_of
from app.web.dependencies import client_of, services_of
from app.web.images import picture_response
from app.web.pictures import finished_pictures
from app.web.schemas import GenerateBody, GenerateQuery, ProblemAnswer
from app.web.sse import LastEventId, generation_messages, parse_last_event_id, stream

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Previews, then the picture; with Accept: image/png the picture alone.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}, "image/png": {}},
    },
    204: {"description": "The generation of Last-Event-ID has ended."},
    **{status: {"model": ProblemAnswer} for status in (400, 403, 413, 415, 422, 429, 500, 503)},
}
router = APIRouter(tags=["generate"])


@router.get("/generate", response_class=Response, responses=_ANSWERS)
async def generate(
    request: Request, query: Annotated[GenerateQuery, Query()], last_event_id: LastEventId = None
) -> Response:
    """Make a picture and watch it develop. A reader that leaves has a few seconds to come back."""
    return await _generate(request, query.params(), last_event_id)


@router.post("/generate", response_class=Response, responses=_ANSWERS, openapi_extra=schema_of(GenerateBody))
async def generate_from_json(request: Request, last_event_id: LastEventId = None) -> Response:
    """The same with the fields as a JSON object."""
    return await _generate(request, (await read_json(request, GenerateBody)).params(), last_event_id)


async def _generate(request: Request, params: GenerationParams, last_event_id: str | None) -> Response:
    generations = services_of(request).generations
    if last_event_id:
        generation_id, step = parse_last_event_id(last_event_id)
        if await _has_ended(request, generation_id):
            return Response(status_code=204)
        return stream(request, generation_messages(generations.watch(generation_id), after_step=step))
    batch = await generations.create(params, client_of(request), lease=True)
    generation_id = batch.generations[0].id
    if _wants_picture(request):
        return await _picture(request, generation_id)
    return stream(request, generation_messages(generations.watch(generation_id)))


async def _has_ended(request: Request, generation_id: str) -> bool:
    try:
        view = await services_of(request).generations.get(generation_id)
    except NotFound:
        return True
    return view.final


def _wants_picture(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "image/png" in accept and "text/event-stream" not in accept


async def _picture(request: Request, generation_id: str) -> Response:
    """The picture alone, once it is done; a reader who leaves gives its place back."""
    pictures = await finished_pictures(request, [generation_id])
    if pictures is None:
        return Response(status_code=499)  # Nobody is there to read it.
    ((view, png),) = pictures
    return picture_response(png, view.download_name, kept_at=view.image_url)
