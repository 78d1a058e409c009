"""What the Studio's form sends, read strictly: every refusal names its field."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

from app.errors import InvalidRequest
from app.services.params import MAX_PICTURES, MAX_SEED, MAX_STEPS, GenerationParams

_FORM_TYPE = "application/x-www-form-urlencoded"
# Two texts of 2,000 characters, each up to four bytes, each byte up to three characters: below 50,000.
_MAX_BODY = 200_000
_MAX_FIELDS = 40
FIELDS = frozenset(
    [
        "prompt",
        "example",
        "model",
        "negative_prompt",
        "seed",
        "steps",
        "guidance_scale",
        "eta",
        "size",
        "scheduler",
        "n",
    ]
)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; the last wins where one comes twice.

    Raises:
        InvalidRequest: It is no URL-encoded form, too long, or not UTF-8.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM_TYPE:
        raise InvalidRequest(f"Content-Type: must be {_FORM_TYPE}")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise InvalidRequest(f"the form must have at most {_MAX_BODY:,} bytes")
    return parse_form(body)


def parse_form(body: bytes) -> dict[str, str]:
    """The fields of a URL-encoded form or query.

    Raises:
        InvalidRequest: It has too many fields or is not UTF-8.
    """
    try:
        pairs = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError as exc:
        raise InvalidRequest(f"the form must be UTF-8 with at most {_MAX_FIELDS} fields") from exc
    return dict(pairs)


def read_params(form: Mapping[str, str]) -> tuple[GenerationParams, int]:
    """What is asked for, and how many pictures. Empty fields are left to the catalogue.

    Raises:
        InvalidRequest: A field is unknown, or not the number that it should be.
    """
    for name in form:
        if name not in FIELDS:
            raise InvalidRequest(f"{name[:40]}: unknown field", field=name[:40])
    width, height = _size(form.get("size", ""))
    params = GenerationParams(
        prompt=form.get("example") or form.get("prompt", ""),
        model=form.get("model") or None,
        negative_prompt=form.get("negative_prompt", ""),
        seed=_whole(form, "seed", 0, MAX_SEED),
        steps=_whole(form, "steps", 1, MAX_STEPS),
        guidance_scale=_number(form, "guidance_scale"),
        eta=_number(form, "eta"),
        width=width,
        height=height,
        noise_scheduler=form.get("scheduler") or None,
    )
    return params, _whole(form, "n", 1, MAX_PICTURES) or 1


def _whole(form: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if len(text) > 20 or not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise InvalidRequest(f"{name}: must be a whole number from {low} to {high}", field=name)
    return int(text)


def _number(form: Mapping[str, str], name: str) -> float | None:
    text = form.get(name, "").strip().replace(",", ".")
    if not text:
        return None
    try:
        return float(text[:40])
    except ValueError as exc:
        raise InvalidRequest(f"{name}: must be a number", field=name) from exc


def _size(text: str) -> tuple[int | None, int | None]:
    if not text.strip():
        return None, None
    width, _, height = text.strip().lower().replace("×", "x").partition("x")
    for part in (width, height):
        if len(part) > 6 or not part.isascii() or not part.isdigit():
            raise InvalidRequest("size: must be width x height in pixels, such as 128x128", field="size")
    return int(width), int(height)
