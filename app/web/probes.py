"""`/health` for people and monitors, `/livez` and `/readyz` for supervisors. None waits for anything."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.web.dependencies import services_of
from app.web.schemas import health_json

_NO_STORE = {"Cache-Control": "no-store"}
_PROBE: dict[int | str, dict[str, Any]] = {503: {"description": "No."}}
router = APIRouter(tags=["status"])


@router.get("/health", response_class=JSONResponse, responses=_PROBE)
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """How the process is; 200 when healthy or degraded, else 503."""
    view = services_of(request).status.health()
    status = 200 if view.status in ("healthy", "degraded") else 503
    return JSONResponse(health_json(view), status_code=status, headers=_NO_STORE)


@router.get("/livez", response_class=PlainTextResponse, responses=_PROBE)
@router.head("/livez", include_in_schema=False)
async def livez(request: Request) -> Response:
    """503 when the process should be restarted: the engine is lost, or a step hangs."""
    live = services_of(request).status.health().live
    return PlainTextResponse("ok\n" if live else "hung\n", 200 if live else 503, _NO_STORE)


@router.get("/readyz", response_class=PlainTextResponse, responses=_PROBE)
@router.head("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 once requests can be served."""
    ready = services_of(request).status.health().ready
    return PlainTextResponse("ok\n" if ready else "not ready\n", 200 if ready else 503, _NO_STORE)
