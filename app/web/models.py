"""`/models`: what can be generated with."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.engine import noise_schedulers
from app.web import pages
from app.web.dependencies import services_of, wants_html
from app.web.schemas import model_json

router = APIRouter(tags=["status"])


@router.get("/models", response_class=JSONResponse)
async def models(request: Request) -> Response:
    """All models with their defaults, limits and state, and the noise schedulers; a browser gets the page."""
    if wants_html(request):
        return await pages.models_page(request)
    views = services_of(request).status.models()
    default = next((view.name for view in views if view.default), None)
    body = {
        "default": default,
        "models": [model_json(view) for view in views],
        "schedulers": [
            {"name": name, "label": label, "max_steps": noise_schedulers.MAX_STEPS.get(name)}
            for name, label in noise_schedulers.NAMES.items()
        ],
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store", "Vary": "Accept"})
