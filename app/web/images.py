"""`/images/{id}.png`: final pictures. They never change, so they may be kept for ever."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.web.dependencies import services_of
from app.web.schemas import ProblemAnswer

IMMUTABLE = "private, max-age=31536000, immutable"
router = APIRouter(tags=["images"])


def picture_response(png: bytes, name: str, *, kept_at: str | None) -> Response:
    """A picture that was just made."""
    headers = {"Content-Disposition": f'inline; filename="{name}"', "Cache-Control": "no-store"}
    if kept_at is not None:
        headers["Content-Location"] = kept_at
    return Response(png, headers=headers, media_type="image/png")


@router.get(
    "/images/{generation_id}.png",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}}},
        304: {"description": "The reader has it."},
        404: {"model": ProblemAnswer},
        503: {"model": ProblemAnswer},
    },
)
@router.head("/images/{generation_id}.png", include_in_schema=False)
async def image(request: Request, generation_id: str) -> Response:
    """A final picture, with all it takes to make it again in its metadata."""
    # An id names one picture for ever, so that it is its own validator.
    etag = f'"{generation_id}"'
    png = await services_of(request).generations.image(generation_id)
    headers = {"ETag": etag, "Cache-Control": IMMUTABLE}
    if etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    # No name: it would win over the readable one that a page's download link gives.
    headers["Content-Disposition"] = "inline"
    return Response(png, headers=headers, media_type="image/png")
