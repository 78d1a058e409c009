"""Reading request bodies: JSON objects in UTF-8, nothing else, and every fault named."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import InvalidRequest

Model = TypeVar("Model", bound=BaseModel)
FORM_TYPE = "application/x-www-form-urlencoded"


class UnsupportedBody(InvalidRequest):
    """The body is of a type that the route does not take."""

    code = "unsupported_media_type"
    status = 415


def is_form(request: Request) -> bool:
    """Whether a page's form was sent."""
    return media_type(request) == FORM_TYPE


def media_type(request: Request) -> str:
    """The content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as `model`.

    Raises:
        UnsupportedBody: It is not declared as JSON.
        InvalidRequest: It is no JSON object in UTF-8, or a field is wrong.
    """
    if media_type(request) != "application/json":
        raise UnsupportedBody("Content-Type: must be application/json", field="Content-Type")
    body = _parse(await request.body())
    if not isinstance(body, dict):
        raise InvalidRequest("body: must be a JSON object", field="body")
    return validate(model, body)


def validate(model: type[Model], values: dict[str, Any]) -> Model:
    """`values` as `model`.

    Raises:
        InvalidRequest: A field is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        raise invalid(exc.errors(include_url=False, include_input=False, include_context=False)) from exc


def invalid(errors: Any) -> InvalidRequest:
    """The first of pydantic's errors as ours: names the field and the limit, quotes no input."""
    first = errors[0]
    location = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = printable(location[0]) if location else "body"
    return InvalidRequest(f"{field}: {_lower(first['msg'])}", field=field)


def printable(text: str, limit: int = 80) -> str:
    """Text from outside that is about to be shown: cut, and without what UTF-8 cannot carry."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[:limit])
    return shown if len(text) <= limit else shown + "…"


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        # A number like 1e999 or NaN is kept here and refused by the field that gets it.
        return json.loads(text)
    except UnicodeDecodeError as exc:
        raise InvalidRequest("body: must be UTF-8", field="body") from exc
    except RecursionError as exc:
        raise InvalidRequest("body: is nested too deeply", field="body") from exc
    except ValueError as exc:
        raise InvalidRequest("body: is not valid JSON", field="body") from exc


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` that documents a body read by `read_json`."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
