"""`/v1/images/generations` and `/v1/models`: OpenAI's images API, for programs that were written for it.

What its documentation says is followed where it makes sense here. Beside its fields a request may carry
`seed`, `steps`, `guidance_scale`, `negative_prompt`, `eta` and `scheduler` (the client package's
`extra_body`). What only steers OpenAI's own models and changes nothing here (`quality`, `style`,
`moderation`, `user`) is accepted and ignored; what would be a false promise (another file format, a
transparent background) is refused.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import anyio.to_thread
from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import InvalidRequest, NotFound, UnknownModel
from app.services.params import (
    MAX_GUIDANCE_SCALE,
    MAX_PICTURES,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    GenerationParams,
)
from app.services.views import GenerationView, ModelView
from app.web.bodies import read_json, schema_of
from app.web.dependencies import client_of, services_of
from app.web.openai_errors import openai_error
from app.web.pictures import failure_of, finished_pictures
from app.web.sse import message, stream

MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
_NO_STORE = {"Cache-Control": "no-store"}


class OpenAIProblem(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIProblemAnswer(BaseModel):
    """The body of every refusal below `/v1`."""

    error: OpenAIProblem


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIProblemAnswer} for status in (400, 403, 404, 413, 415, 429, 500, 503)
}
router = APIRouter(prefix="/v1", tags=["openai"])


class ImagesBody(BaseModel):
    """Fields of OpenAI's `images.generate`, and a few of ours."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What to make; not only blanks.")
    model: str | None = Field(None, max_length=200, description="Bare name or set/name; see /v1/models.")
    n: int | None = Field(None, ge=1, le=MAX_PICTURES, description="Pictures; 1 when streaming.")
    size: str | None = Field(None, max_length=40, description="'WxH' in pixels, or 'auto'.")
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(
        None, ge=0, le=MAX_PARTIAL_IMAGES, description="Pictures on the way that a stream carries."
    )
    quality: str | None = Field(None, max_length=40, description="Ignored.")
    style: str | None = Field(None, max_length=40, description="Ignored.")
    moderation: str | None = Field(None, max_length=40, description="Ignored.")
    user: str | None = Field(None, max_length=1000, description="Ignored, and not kept.")
    safety_identifier: str | None = Field(None, max_length=1000, description="Ignored, and not kept.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Ours. Drawn by chance if left out.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Ours. Inference steps.")
    guidance_scale: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False, description="Ours."
    )
    negative_prompt: str | None = Field(
        None, max_length=MAX_PROMPT, description="Ours. What to keep out of the picture."
    )
    eta: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="Ours. For DDIM.")
    scheduler: str | None = Field(None, max_length=40, description="Ours. Noise scheduler; see /models.")

    def check_stream(self) -> None:
        """Refuse what does not go with a stream, or not without one.

        Raises:
            InvalidRequest: Names the field.
        """
        if self.stream:
            if self.n not in (None, 1):
                raise InvalidRequest("n: must be 1 when streaming", field="n")
            if self.response_format == "url":
                raise InvalidRequest(
                    "response_format: a stream carries b64_json only", field="response_format"
                )
        elif self.partial_images:
            raise InvalidRequest("partial_images: needs stream to be true", field="partial_images")

    def params(self) -> GenerationParams:
        """The same for the services.

        Raises:
            InvalidRequest: The size cannot be read.
        """
        width, height = _size(self.size)
        return GenerationParams(
            prompt=self.prompt,
            model=self.model,
            negative_prompt=self.negative_prompt or "",
            seed=self.seed,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            width=width,
            height=height,
            noise_scheduler=self.scheduler,
            preview=bool(self.stream and self.partial_images),
        )


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(text or "")
    if found is None:
        raise InvalidRequest("size: must look like 512x512, or be auto", field="size")
    return int(found[1]), int(found[2])


@router.post(
    "/images/generations",
    response_class=JSONResponse,
    responses={**_PROBLEMS, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    openapi_extra=schema_of(ImagesBody),
)
async def generate_images(request: Request) -> Response:
    """Make pictures as OpenAI's `images.generate` does. Who leaves gives the places back."""
    body = await read_json(request, ImagesBody)
    body.check_stream()
    params, services = body.params(), services_of(request)
    try:
        batch = await services.generations.create(params, client_of(request), n=body.n or 1, lease=True)
    except UnknownModel as error:
        raise _no_such_model(error) from error
    ids = [generation.id for generation in batch.generations]
    if body.stream:
        states = services.generations.watch(ids[0])
        return stream(request, _events(states, body.partial_images or 0))
    pictures = await finished_pictures(request, ids)
    if pictures is None:
        return Response(status_code=499)  # Nobody is there to read it.
    first = pictures[0][0]
    answer = {
        "created": _created(first),
        "data": [_picture(request, view, png, body.response_format) for view, png in pictures],
        "background": "opaque",
        "output_format": "png",
        "size": f"{first.width}x{first.height}",
        "usage": _NO_TOKENS,
    }
    return JSONResponse(answer, headers=_NO_STORE)


def _picture(request: Request, view: GenerationView, png: bytes, form: str | None) -> dict[str, Any]:
    ours = {"seed": view.seed, "generation_id": view.id, "notices": list(view.notices)}
    if form == "url":
        return {"url": f"{request.base_url}images/{view.id}.png", **ours}
    return {"b64_json": b64encode(png).decode(), **ours}


def _created(view: GenerationView) -> int:
    return int(view.created_at.timestamp())


async def _events(states: AsyncIterator[GenerationView], partial_images: int) -> AsyncIterator[bytes]:
    """The stream: a few pictures on the way, then the finished one, or an error."""
    index, due = 0, None
    async with aclosing(states) as views:  # type: ignore[type-var]
        async for view in views:
            if due is None:
                due = partial_steps(view.steps, partial_images)
            if view.state == "running" and view.preview is not None and due and view.step >= due[0]:
                # A slow reader may have missed more than one of them.
                due = [step for step in due if step > view.step]
                if view.step < view.steps:
                    yield await _partial_event(view, index)
                    index += 1
            elif view.final:
                yield _final_event(view)


def partial_steps(steps: int, partial_images: int) -> list[int]:
    """After which steps a partial image is sent: spread evenly, none after the last step."""
    wanted = {math.ceil(steps * (i + 1) / (partial_images + 1)) for i in range(partial_images)}
    return sorted(step for step in wanted if step < steps)


async def _partial_event(view: GenerationView, index: int) -> bytes:
    assert view.preview is not None
    png = await anyio.to_thread.run_sync(_full_size_png, view.preview, view.width, view.height)
    return _event("image_generation.partial_image", view, png, partial_image_index=index)


def _full_size_png(preview: bytes, width: int, height: int) -> bytes:
    """A preview as what was asked for: its size, its format."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(preview)) as small:
        small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _final_event(view: GenerationView) -> bytes:
    if view.image is None:
        error = {"type": "error", **openai_error(failure_of(view))}
        return message(json.dumps(error), event="error")
    ours = {"seed": view.seed, "generation_id": view.id, "notices": list(view.notices)}
    return _event("image_generation.completed", view, view.image, usage=_NO_TOKENS, **ours)


def _event(kind: str, view: GenerationView, png: bytes, **more: Any) -> bytes:
    body = {
        "type": kind,
        "b64_json": b64encode(png).decode(),
        "created_at": int(time.time()),
        "size": f"{view.width}x{view.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
        **more,
    }
    return message(json.dumps(body), event=kind)


@router.get("/models", response_class=JSONResponse)
async def list_models(request: Request) -> Response:
    """All models of the catalogue; `state` tells which of them are loaded."""
    models = [_model(view) for view in services_of(request).status.models()]
    return JSONResponse({"object": "list", "data": models}, headers=_NO_STORE)


@router.get("/models/{model:path}", response_class=JSONResponse, responses=_PROBLEMS)
async def show_model(request: Request, model: str) -> Response:
    """One model."""
    services = services_of(request)
    try:
        entry = services.catalog.resolve(model)
    except UnknownModel as error:
        raise _no_such_model(error) from error
    view = next(view for view in services.status.models() if view.id == entry.id)
    return JSONResponse(_model(view), headers=_NO_STORE)


def _model(view: ModelView) -> dict[str, Any]:
    # When a model was made is not known here.
    return {
        "id": view.name,
        "object": "model",
        "created": 0,
        "owned_by": view.id.partition("/")[0],
        "state": view.state,
    }


class _NoSuchModel(NotFound):
    code = UnknownModel.code


def _no_such_model(error: UnknownModel) -> NotFound:
    """As OpenAI answers: 404, with the known names."""
    return _NoSuchModel(error.message, field="model")
