"""Every refusal in one shape: JSON for programs, a readable fragment for pages."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.errors import DarkroomError, InvalidRequest, NotFound
from app.web import pages
from app.web.bodies import invalid
from app.web.dependencies import wants_html
from app.web.openai_errors import is_openai, openai_error

logger = logging.getLogger(__name__)


class _HTTPProblem(DarkroomError):
    """What the framework itself refuses: an unknown path, a wrong method."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(
            status, "invalid_request" if status < 500 else "error"
        )


def error_json(error: DarkroomError, path: str = "") -> Response:
    """The answer for programs; below `/v1` in the shape of OpenAI's API."""
    body: dict[str, Any] = {"error": {"code": error.code, "message": error.message, "field": error.field}}
    if is_openai(path):
        body = openai_error(error)
    # ASCII escapes: a message must never fail to be sent for a character in it.
    return Response(json.dumps(body), error.status, _headers(error), media_type="application/json")


def install(app: FastAPI) -> None:
    """Answer all errors of `app` in that shape."""
    app.add_exception_handler(DarkroomError, _darkroom_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _answer(request: Request, error: DarkroomError) -> Response:
    path = request.url.path
    if is_openai(path) or not wants_html(request):
        return error_json(error, path)
    response = await pages.problem(request, error)
    for name, value in _headers(error).items():
        response.headers.setdefault(name, value)
    return response


async def _darkroom_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DarkroomError)
    return await _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer(request, invalid(error.errors()))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem: DarkroomError
    if error.status_code == 404:
        problem = NotFound("There is nothing at this address.")
    elif error.status_code == 400:
        problem = InvalidRequest("The request could not be read.")
    else:
        problem = _HTTPProblem(error.status_code, f"{error.detail}.")
    response = await _answer(request, problem)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _unexpected(request: Request, error: Exception) -> Response:
    # The server logs the traceback; nothing of it goes out.
    return await _answer(request, DarkroomError("Something went wrong here; it has been logged."))


def _headers(error: DarkroomError) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return headers
