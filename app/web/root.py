"""`GET /`: JSON for programs, the Studio for browsers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.web import pages
from app.web.dependencies import services_of, wants_html

router = APIRouter(tags=["status"])


@router.get("/", response_class=JSONResponse)
@router.head("/", include_in_schema=False)
async def root(request: Request) -> Response:
    """What this is and which models it has; a browser gets the page."""
    if wants_html(request):
        return await pages.home(request)
    services = services_of(request)
    body = {
        "message": "Darkroom: pictures that develop before your eyes",
        "available_models": services.catalog.public_names(),
        "models_loaded": list(services.status.health().models_loaded),
        "docs": "/docs",
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store", "Vary": "Accept, HX-Request"})
