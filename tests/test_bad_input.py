"""Bad input: a clear 4xx that names the field and the limit, nothing half-written, never a 5xx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.fakes import FakeBackend
from tests.servers import parse_events, serving

HUGE = "9" * 5000

# field, value as it stands in JSON
BAD_NUMBERS = [
    ("guidance_scale", "NaN"),
    ("guidance_scale", "Infinity"),
    ("guidance_scale", "-Infinity"),
    ("guidance_scale", "1e999"),
    ("guidance_scale", "-0.1"),
    ("guidance_scale", "30.1"),
    ("guidance_scale", "true"),
    ("guidance_scale", '"5"'),
    ("eta", "NaN"),
    ("eta", "1.01"),
    ("eta", "-1"),
    ("steps", "0"),
    ("steps", "-1"),
    ("steps", "151"),
    ("steps", "1000000000"),
    ("steps", "true"),
    ("steps", '"7"'),
    ("steps", "7.5"),
    ("steps", "1e999"),
    ("steps", "[7]"),
    ("seed", "-1"),
    ("seed", "9223372036854775808"),
    ("seed", "NaN"),
    ("width", "0"),
    ("width", "-8"),
    ("width", "513"),
    ("width", "65"),
    ("width", "100000"),
    ("height", "24"),
    ("height", "true"),
    ("scheduler", '"pndm"'),
    ("scheduler", "7"),
    ("model", '"../../etc/passwd"'),
    ("model", '"/etc/passwd"'),
    ("model", '"nope"'),
    ("model", '""'),
    ("preview", '"yes"'),
    ("negative_prompt", "null"),
    ("unknown", "1"),
    ("n", "0"),
    ("n", "9"),
    ("n", "true"),
]
BAD_PROMPTS = [
    '""',
    '"   \\n\\t"',
    json.dumps("x" * 2001),
    '"a\\u0000b"',
    '"\\ud800"',
    '"a\\udc00b"',
    "null",
    "7",
    '["a"]',
]


@pytest.mark.parametrize(("field", "value"), BAD_NUMBERS)
async def test_field_is_refused_by_name(
    client: httpx.AsyncClient, backend: FakeBackend, field: str, value: str
) -> None:
    await refuses_json(client, backend, f'{{"prompt": "a cat", "{field}": {value}}}', field)


@pytest.mark.parametrize("value", BAD_PROMPTS)
async def test_prompt_is_refused(client: httpx.AsyncClient, backend: FakeBackend, value: str) -> None:
    await refuses_json(client, backend, f'{{"prompt": {value}}}', "prompt")


async def refuses_json(client: httpx.AsyncClient, backend: FakeBackend, body: str, field: str) -> None:
    paths = ["/generations"] if field == "n" else ["/generations", "/generate"]
    for path in paths:
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422), response.text
        error = response.json()["error"]
        assert error["field"] == field
        assert error["message"].startswith(f"{field}:")
    assert backend.requests == []


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("steps", 151, "150"),
        ("guidance_scale", 31, "30"),
        ("seed", 2**63, str(2**63 - 1)),
        ("n", 9, "8"),
        ("width", 200, "128"),
        ("prompt", "x" * 2001, "2,000"),
        ("model", "nope", "base, quick"),
        ("scheduler", "nope", "ddim, euler"),
    ],
)
async def test_message_states_the_limit(
    client: httpx.AsyncClient, field: str, value: object, limit: str
) -> None:
    response = await client.post("/generations", json={"prompt": "a", field: value})
    assert limit.replace(",", "") in response.json()["error"]["message"].replace(",", "")


async def test_limits_that_depend_on_each_other(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"steps": 51, "scheduler": "lcm"}, "steps", "50"),
        ({"steps": 31, "model": "quick"}, "steps", "30"),
        ({"width": 128, "height": 128}, "width", "8,192"),
        ({"seed": 2**63 - 2, "n": 3}, "seed", str(2**63 - 1)),
    ]
    for fields, field, limit in cases:
        response = await client.post("/generations", json={"prompt": "a", **fields})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["field"], limit in error["message"]) == (field, True), error
    assert backend.requests == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "prompt"),
        ("prompt=", "prompt"),
        ("prompt=%20%20", "prompt"),
        ("prompt=a%00b", "prompt"),
        ("prompt=" + "x" * 2001, "prompt"),
        ("prompt=a&steps=0", "steps"),
        ("prompt=a&steps=true", "steps"),
        ("prompt=a&steps=7.5", "steps"),
        ("prompt=a&steps=", "steps"),
        ("prompt=a&steps=" + HUGE, "steps"),
        ("prompt=a&seed=" + HUGE, "seed"),
        ("prompt=a&guidance_scale=nan", "guidance_scale"),
        ("prompt=a&guidance_scale=inf", "guidance_scale"),
        ("prompt=a&guidance_scale=1e999", "guidance_scale"),
        ("prompt=a&eta=-0.5", "eta"),
        ("prompt=a&width=513", "width"),
        ("prompt=a&model=..%2f..%2fetc%2fpasswd", "model"),
        ("prompt=a&model=%ff", "model"),
        ("prompt=a&surprise=1", "surprise"),
        ("prompt=a&n=2", "n"),
    ],
)
async def test_query_is_refused_by_name(
    client: httpx.AsyncClient, backend: FakeBackend, query: str, field: str
) -> None:
    response = await client.get(f"/generate?{query}")
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["field"] == field
    assert backend.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"prompt"',
        b"7",
        b"{",
        b'{"prompt": "a",}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        '{"prompt": "a"}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"prompt": "a"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"seed": ' + HUGE.encode() + b', "prompt": "a"}',
        b'{"\\ud800": 1, "prompt": "a"}',
        b'{"' + b"x" * 5000 + b'": 1, "prompt": "a"}',
    ],
    ids=lambda body: repr(body[:16]),
)
@pytest.mark.parametrize("path", ["/generate", "/generations", "/votes"])
async def test_body_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: bytes
) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["message"]
    assert len(response.content) < 1000
    assert backend.requests == []


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "multipart/form-data", "application/xml", "application/jsonx"]
)
async def test_other_content_types_are_refused(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    for path in ("/generate", "/generations", "/votes"):
        response = await client.post(path, content=b'{"prompt": "a"}', headers=headers)
        assert response.status_code == 415, path
        assert response.json()["error"]["field"] == "Content-Type"


async def test_many_form_fields_are_refused(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = "&".join(f"f{number}=1" for number in range(20_000))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    for path in ("/generations", "/votes", "/generate"):
        response = await client.post(path, content=body, headers=headers)
        assert 400 <= response.status_code < 500
    few = "&".join(f"f{number}=1" for number in range(5000))
    assert 400 <= (await client.post("/generations", content=few, headers=headers)).status_code < 500
    assert backend.requests == []


async def test_large_bodies_are_refused_before_they_are_parsed(client: httpx.AsyncClient) -> None:
    response = await client.post("/generations", json={"prompt": "x" * 5_000_000})
    assert response.status_code == 413
    assert "65,536" in response.json()["error"]["message"]


async def test_endless_chunks_and_false_lengths(app: FastAPI) -> None:
    """A body without an end is cut at the limit; a length that cannot be is refused."""
    endless = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    async with serving(app) as address:
        port = int(address.rsplit(":", 1)[1])
        head = (
            b"POST /generations HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n" % port
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + endless * 3)
        async with asyncio.timeout(5):
            assert b" 413 " in await reader.readline()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"Content-Length: -5\r\n\r\n{}")
        async with asyncio.timeout(5):
            assert b" 400 " in await reader.readline()
        writer.close()


async def test_slow_body_is_cut_off() -> None:
    from app.web.security import BodyLimit

    async def never(*_: Any) -> None:
        raise AssertionError("the application must not see it")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"10")], "path": "/votes"}
    async with asyncio.timeout(3):
        await BodyLimit(never, seconds=0.05)(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    "prompt",
    [
        "‮evil",
        "a\u200bb",
        "<img src=x onerror=alert(1)>",
        "x hx-on:click=alert(1)",
        "{{7*7}}",
        "🦊" * 50,
        "é\u0301",
    ],
)
async def test_strange_text_is_kept_as_text(client: httpx.AsyncClient, prompt: str) -> None:
    body = (await client.post("/generations", json={"prompt": prompt, "steps": 1})).json()
    assert body["generations"][0]["prompt"] == prompt
    await client.get(f"/generations/{body['batch_id']}/events")
    assert (await client.get(f"/generations/{body['batch_id']}")).json()["prompt"] == prompt
    picture = await client.get("/generate", params={"prompt": prompt}, headers={"accept": "image/png"})
    picture.headers["content-disposition"].encode("ascii")


@pytest.mark.parametrize(
    "path",
    [
        "/images/../darkroom.db.png",
        "/images/..%2f..%2fdarkroom.db.png",
        "/images/%2e%2e/secret_key.png",
        "/images/%00.png",
        "/images/" + "a" * 5000 + ".png",
        "/images/x.svg",
        "/images/%ff%fe.png",
        "/generations/%00",
        "/generations/' OR 1=1 --",
        "/generations/%ed%a0%80",
        "/generations/..%2f..%2fetc",
        "/static/..%2f..%2fpyproject.toml",
        "/static/%2e%2e/pyproject.toml",
        "/static/%00",
        "/static/" + "a" * 5000,
    ],
)
async def test_paths_that_lead_nowhere(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 404, response.text
    assert len(response.content) < 1000


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"])
async def test_wrong_methods_are_refused(
    client: httpx.AsyncClient, backend: FakeBackend, method: str
) -> None:
    response = await client.request(method, "/generate", params={"prompt": "a"})
    assert response.status_code == 405
    assert backend.requests == []


async def test_duplicate_and_empty_queries(client: httpx.AsyncClient) -> None:
    response = await client.get("/generate?prompt=a&steps=2&steps=3")
    assert response.status_code in (200, 400, 422)
    if response.status_code == 200:
        assert parse_events(response.text)[-2].json["total_steps"] in (2, 3)


@pytest.fixture(autouse=True)
async def no_server_errors(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Whatever a test sends, nothing answers with a 5xx."""
    statuses: list[int] = []

    async def remember(response: httpx.Response) -> None:
        statuses.append(response.status_code)

    client.event_hooks["response"].append(remember)
    yield
    assert not [status for status in statuses if status >= 500]
