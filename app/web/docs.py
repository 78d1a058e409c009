"""`/docs`: the API's reference, from a vendored file and under a policy of its own."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from app.web.pages import asset

router = APIRouter(include_in_schema=False)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Darkroom API</title>
<link rel="icon" href="data:,">
<script type="module" src="{script}"></script>
</head>
<body>
<rapi-doc spec-url="/openapi.json" theme="dark" render-style="read" load-fonts="false" show-header="false"
 allow-server-selection="false" allow-authentication="false"></rapi-doc>
</body>
</html>
"""


@router.get("/docs")
async def docs() -> Response:
    """RapiDoc; works offline."""
    page = _PAGE.format(script=asset("vendor/rapidoc-9.3.8.min.js"))
    return HTMLResponse(page, headers={"Cache-Control": "no-cache"})
