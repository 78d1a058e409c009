"""OpenAI's own client package against this server: what it asks for it gets, and it raises what it should."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from PIL import Image

from app.main import create_app
from app.web.openai import partial_steps
from tests.conftest import make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import eventually, parse_events, serving, serving_in_thread

SEEDED: dict[str, Any] = {"steps": 8, "seed": 7}


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    """The server's address."""
    async with serving(app) as opened:
        yield opened


@pytest.fixture
async def ai(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The package's asynchronous client; it shows errors at once instead of trying again."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="anything", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def sync_ai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The package's synchronous client, against a server in another thread."""
    catalog = make_catalog()
    settings = make_settings(tmp_path_factory.mktemp("openai"))
    application = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    with (
        serving_in_thread(application) as opened,
        openai.OpenAI(base_url=f"{opened}/v1", api_key="anything", max_retries=0) as client,
    ):
        yield client


def png_of(text: str | None) -> Image.Image:
    assert text is not None
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    assert image.format == "PNG"
    return image


async def test_pictures_come_as_base64(ai: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    """A failure means that a program written for OpenAI's API gets no picture, or not the one asked for."""
    response = await ai.images.generate(
        model="quick",
        prompt="a red apple",
        n=3,
        size="64x96",
        user="somebody",
        quality="high",
        extra_body={**SEEDED, "guidance_scale": 2.5, "negative_prompt": "pears"},
    )
    assert response.data is not None and len(response.data) == 3
    for position, image in enumerate(response.data):
        picture = png_of(image.b64_json)
        assert picture.size == (64, 96)
        assert picture.getpixel((0, 0)) == (7 + position, 32, 64), "seeds count up within one answer"
        assert image.url is None
    assert response.output_format == "png" and response.size == "64x96" and response.created > 0
    assert response.usage is not None and response.usage.total_tokens == 0
    request = backend.requests[0]
    assert (request.model, request.steps, request.guidance_scale) == ("extra/quick", 8, 2.5)
    assert request.negative_prompt == "pears" and not request.preview


async def test_defaults_are_the_catalogues(ai: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    """`auto` and everything left out must not differ from what `/generate` would take."""
    response = await ai.images.generate(prompt="a red apple", size="auto")
    assert response.data is not None and len(response.data) == 1
    (request,) = backend.requests
    assert (request.model, request.steps, request.width, request.height) == ("builtin/base", 20, 64, 64)


async def test_an_address_can_be_opened_from_anywhere(ai: openai.AsyncOpenAI) -> None:
    """A relative address would lead nowhere: the client knows no page that it came from."""
    response = await ai.images.generate(prompt="an apple", n=2, response_format="url", extra_body=SEEDED)
    assert response.data is not None
    for image in response.data:
        assert image.url is not None and image.url.startswith("http://127.0.0.1:") and image.b64_json is None
        async with httpx.AsyncClient() as reader:
            answer = await reader.get(image.url)
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("wanted", [0, 1, 3])
async def test_a_stream_carries_partial_images_and_the_picture(
    ai: openai.AsyncOpenAI, backend: FakeBackend, wanted: int
) -> None:
    """The client's typed events: a wrong key or type would break programs that follow the documentation."""
    backend.step_seconds = 0.02
    events = []
    stream = await ai.images.generate(
        prompt="an apple", stream=True, partial_images=wanted, size="64x96", extra_body=SEEDED
    )
    async for event in stream:
        events.append(event)
    *partial, last = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * wanted
    for index, event in enumerate(partial):
        assert event.type == "image_generation.partial_image" and event.partial_image_index == index
        assert png_of(event.b64_json).size == (64, 96)
        assert (event.size, event.output_format, event.background) == ("64x96", "png", "opaque")
    assert last.type == "image_generation.completed"
    assert png_of(last.b64_json).getpixel((0, 0)) == (7, 32, 64)
    assert last.usage.total_tokens == 0 and last.usage.input_tokens_details.text_tokens == 0
    assert backend.requests[0].preview is (wanted > 0), "previews that nobody sees cost time"


def test_the_synchronous_client(sync_ai: openai.OpenAI) -> None:
    """The same for programs without asyncio."""
    response = sync_ai.images.generate(prompt="an apple", n=2, extra_body=SEEDED)
    assert response.data is not None and len(response.data) == 2
    png_of(response.data[1].b64_json)
    stream = sync_ai.images.generate(prompt="an apple", stream=True, partial_images=2, extra_body=SEEDED)
    kinds = [event.type for event in stream]
    assert kinds[-1] == "image_generation.completed"
    with pytest.raises(openai.BadRequestError):
        sync_ai.images.generate(prompt=" ")
    assert [model.id for model in sync_ai.models.list()] == ["base", "quick"]


async def test_the_stream_as_it_is_written(address: str, backend: FakeBackend) -> None:
    """Other clients read the lines themselves: `event:` and the `type` in the data must agree."""
    backend.step_seconds = 0.02
    body = {"prompt": "an apple", "stream": True, "partial_images": 1, "steps": 4}
    async with httpx.AsyncClient(base_url=address, timeout=20) as client:
        answer = await client.post("/v1/images/generations", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream") and "\r" not in answer.text
    events = parse_events(answer.text)
    assert [event.event for event in events] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert all(event.json["type"] == event.event for event in events)


@pytest.mark.parametrize(
    ("steps", "partial_images", "sent"),
    [(20, 0, []), (20, 1, [10]), (20, 3, [5, 10, 15]), (4, 3, [1, 2, 3]), (2, 3, [1]), (1, 3, [])],
)
def test_partial_images_are_spread_over_the_steps(steps: int, partial_images: int, sent: list[int]) -> None:
    assert partial_steps(steps, partial_images) == sent


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"size": "large"}, "size"),
        ({"size": "64x64x64"}, "size"),
        ({"size": "9999x64"}, "size"),
        ({"size": "64x63"}, "size"),
        ({"response_format": "gif"}, "response_format"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"output_format": "webp"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"extra_body": {"steps": 151}}, "steps"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"sparkle": 1}}, "sparkle"),
    ],
)
async def test_what_cannot_be_done_is_a_bad_request(
    ai: openai.AsyncOpenAI, backend: FakeBackend, fields: dict[str, Any], param: str
) -> None:
    """A failure means that the client raises another error, or cannot tell the user which field is wrong."""
    with pytest.raises(openai.BadRequestError) as raised:
        await ai.images.generate(**{"prompt": "an apple", **fields})
    assert raised.value.param == param and raised.value.type == "invalid_request_error"
    assert raised.value.code and (param in str(raised.value) or param == "size")
    assert backend.requests == []


async def test_an_unknown_model_is_not_found(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await ai.images.generate(prompt="an apple", model="dall-e-3")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    assert "known models are base, quick" in str(raised.value)
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("dall-e-3")
    with pytest.raises(openai.NotFoundError):
        await ai.get("/nowhere", cast_to=object)


async def test_a_full_queue_is_a_rate_limit(tmp_path: Path) -> None:
    """The client waits and tries again for exactly this error."""
    catalog = make_catalog()
    backend = FakeBackend(catalog)
    application = create_app(make_settings(tmp_path, max_per_client=1), backend=backend, catalog=catalog)
    async with (
        application.router.lifespan_context(application),
        serving(application) as address,
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError) as raised:
            await client.images.generate(prompt="an apple", n=2)
        assert raised.value.code == "rate_limit_exceeded" and raised.value.type == "rate_limit_error"
        assert int(raised.value.response.headers["retry-after"]) >= 1


async def test_failures_are_server_errors(ai: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    """Of two pictures one fails: half an answer would be taken for a whole one."""
    with pytest.raises(openai.InternalServerError) as raised:
        await ai.images.generate(prompt="please fail", n=2)
    assert raised.value.type == "server_error" and "went astray" in str(raised.value)
    backend.set_model("builtin/base", "failed", "The weights are damaged.")
    with pytest.raises(openai.InternalServerError) as raised:
        await ai.images.generate(prompt="an apple")
    assert raised.value.status_code == 503 and raised.value.code == "model_not_ready"


async def test_a_failure_in_a_stream_is_raised(ai: openai.AsyncOpenAI) -> None:
    """A stream that just ended would look like a picture that never came."""
    stream = await ai.images.generate(prompt="please fail", stream=True, partial_images=1)
    with pytest.raises(openai.APIError) as raised:
        async for _ in stream:
            pass
    assert "went astray" in str(raised.value) and raised.value.code == "generation_failed"


async def test_refusals_before_any_route_have_the_same_shape(address: str) -> None:
    """Host, origin, size and type are checked by others; the client parses their refusals all the same."""
    path = "/v1/images/generations"
    async with httpx.AsyncClient(base_url=address) as client:
        answers = {
            403: await client.post(path, json={"prompt": "x"}, headers={"origin": "http://evil.example"}),
            413: await client.post(path, content=b"x" * 70_000),
            415: await client.post(path, content=b"prompt=x"),
            405: await client.get(path),
            404: await client.get("/v1/nowhere", headers={"accept": "text/html"}),
            400: await client.post(path, content=b"{", headers={"content-type": "application/json"}),
        }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, status


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_reader_that_leaves_gives_its_places_back(
    address: str, backend: FakeBackend, app: FastAPI, streaming: bool
) -> None:
    """A failure means that the pictures of programs that gave up keep everybody else waiting."""
    body = {"prompt": "never", "n": 1 if streaming else 2, "stream": streaming}
    async with httpx.AsyncClient(base_url=address, timeout=0.5) as client:
        with pytest.raises(httpx.ReadTimeout):
            async with client.stream("POST", "/v1/images/generations", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    pass
    await eventually(lambda: app.state.services.generations.unfinished == 0)
    assert backend.aborts == body["n"]


async def test_models_are_listed(ai: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.set_model("extra/quick", "unloaded")
    models = [model async for model in ai.models.list()]
    assert [(model.id, model.object, model.owned_by) for model in models] == [
        ("base", "model", "builtin"),
        ("quick", "model", "extra"),
    ]
    assert [(model.model_extra or {})["state"] for model in models] == ["ready", "unloaded"]
    assert (await ai.models.retrieve("base")).id == "base"
    assert (await ai.models.retrieve("extra/quick")).id == "quick"


async def test_the_picture_can_be_found_again(ai: openai.AsyncOpenAI, app: FastAPI) -> None:
    """Its seed and its id come along, so that it can be voted on and made again."""
    response = await ai.images.generate(prompt="an apple", extra_body=SEEDED)
    assert response.data is not None
    extra = json.loads(response.data[0].model_dump_json())
    assert extra["seed"] == 7
    view = await app.state.services.generations.get(extra["generation_id"])
    assert view.state == "done"
