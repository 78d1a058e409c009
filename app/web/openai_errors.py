"""Refusals in the shape of OpenAI's API, so that its client package raises the error that it should."""

from __future__ import annotations

from typing import Any

from app.errors import DarkroomError, TooManyRequests, UnknownModel

_PREFIX = "/v1/"
_CODES = {UnknownModel.code: "model_not_found", TooManyRequests.code: "rate_limit_exceeded"}
_PARAMS = {"width": "size", "height": "size"}


def is_openai(path: str) -> bool:
    """Whether the path belongs to the API that speaks OpenAI's language."""
    return path.startswith(_PREFIX)


def openai_error(error: DarkroomError) -> dict[str, Any]:
    """The body that tells of `error`."""
    kind = "invalid_request_error"
    if error.status >= 500:
        kind = "server_error"
    elif error.status == 429:
        kind = "rate_limit_error"
    field = error.field
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": None if field is None else _PARAMS.get(field, field),
            "code": _CODES.get(error.code, error.code),
        }
    }
