"""`/docs`: the API's reference, from vendored files only and under a policy of its own."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.web.pages import asset

router = APIRouter(include_in_schema=False)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Darkroom API</title>
<link rel="icon" href="{icon}">
<script type="module" src="{rapidoc}"></script>
</head>
<body>
<rapi-doc spec-url="/openapi.json" theme="dark" render-style="read" load-fonts="false" show-header="false"
 allow-server-selection="false" allow-authentication="false"></rapi-doc>
</body>
</html>
"""


@router.get("/docs")
async def docs(request: Request) -> Response:
    """RapiDoc reads the schema and lets one try the calls; works offline."""
    page = _PAGE.format(rapidoc=asset("vendor/rapidoc-9.3.8.min.js"), icon=asset("icons/favicon.svg"))
    return HTMLResponse(page, headers={"Cache-Control": "no-cache"})
