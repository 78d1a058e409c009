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
<link rel="stylesheet" href="{css}">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{bundle}"></script>
<script src="{start}"></script>
</body>
</html>
"""


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI; works offline."""
    page = _PAGE.format(
        css=asset("vendor/swagger-ui.css"),
        bundle=asset("vendor/swagger-ui-bundle.js"),
        start=asset("vendor/swagger-initializer.js"),
    )
    return HTMLResponse(page, headers={"Cache-Control": "no-cache"})
