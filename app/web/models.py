"""`/models`: what can be generated with; what is in memory can be changed by who may."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.engine import noise_schedulers
from app.errors import Forbidden
from app.services.views import ModelView
from app.web import pages
from app.web.dependencies import is_admin, services_of, wants_html
from app.web.schemas import ProblemAnswer, model_json

router = APIRouter(tags=["status"])
_CHANGE: dict[str, Any] = {
    "status_code": 202,
    "response_class": JSONResponse,
    "responses": {status: {"model": ProblemAnswer} for status in (403, 404)},
}


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


@router.post("/models/{set_name}/{name}/load", **_CHANGE)
async def load(request: Request, set_name: str, name: str) -> Response:
    """Load a model; takes this machine itself or the admin token. Its state tells how far that is."""
    _check_admin(request)
    return await _changed(request, services_of(request).models.load(f"{set_name}/{name}"))


@router.post("/models/{set_name}/{name}/unload", **_CHANGE)
async def unload(request: Request, set_name: str, name: str) -> Response:
    """Unload a model once its pictures are finished; takes this machine itself or the admin token."""
    _check_admin(request)
    return await _changed(request, services_of(request).models.unload(f"{set_name}/{name}"))


@router.post("/models/{set_name}/{name}/reload", **_CHANGE)
async def reload(request: Request, set_name: str, name: str) -> Response:
    """Read a model's weights anew; takes this machine itself or the admin token."""
    _check_admin(request)
    return await _changed(request, services_of(request).models.reload(f"{set_name}/{name}"))


def _check_admin(request: Request) -> None:
    if not is_admin(request):
        raise Forbidden("loading and unloading models takes the machine itself, or the admin token")


async def _changed(request: Request, model: ModelView) -> Response:
    if wants_html(request):
        return await pages.models_changed(request)
    return JSONResponse(model_json(model), status_code=202, headers={"Cache-Control": "no-store"})
