"""Who may talk to the server: own hosts, own origins, no other site; and the headers on every answer."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from itsdangerous import Signer

from app.main import create_app
from app.services.clients import COOKIE_NAME
from tests.conftest import client_of, make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import serving

COSTLY = [("GET", "/generate?prompt=a"), ("POST", "/generate"), ("POST", "/generations"), ("POST", "/votes"),
          ("DELETE", "/votes"), ("DELETE", "/generations/x"), ("GET", "/generations/x/events"),
          ("POST", "/v1/images/generations"), ("POST", "/models/builtin/base/unload")]  # fmt: skip


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "192.0.2.1",
        "0.0.0.0",
        "[::2]",
        "",
        "a b",
        "localhost:99999999",
        "localhost/path",
    ],
)
async def test_foreign_hosts_are_refused(client: httpx.AsyncClient, host: str) -> None:
    """DNS rebinding: a page of another site that resolves its own name to us must get nothing."""
    for path in ("/", "/health", "/generate?prompt=a", "/images/x.png", "/static/x", "/docs"):
        response = await client.get(path, headers={"host": host})
        assert response.status_code == 403, path
        assert response.json()["error"]["field"] == "Host"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]:8000", "localhost."]
)
async def test_loopback_hosts_are_ours(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/livez", headers={"host": host})).status_code == 200


async def test_allowed_hosts_are_added(tmp_path, backend: FakeBackend) -> None:  # type: ignore[no-untyped-def]
    settings = make_settings(tmp_path, allowed_hosts="darkroom.example, *.lan", host="0.0.0.0")
    application = create_app(settings, backend=backend, catalog=make_catalog())
    async with client_of(application) as client:
        for host, status in {
            "darkroom.example": 200,
            "Darkroom.Example:443": 200,
            "box.lan": 200,
            "lan": 403,
            "evillan": 403,
            "0.0.0.0": 403,
            "x.darkroom.example": 403,
        }.items():
            assert (await client.get("/livez", headers={"host": host})).status_code == status, host


async def test_address_that_the_connection_came_in_on_is_ours(app: FastAPI) -> None:
    """A server on all addresses is reached by its number; a name could be rebound to it."""
    async with serving(app) as address:
        port = address.rsplit(":", 1)[1]
        async with httpx.AsyncClient() as client:
            # 127.0.0.2 is loopback, but not by one of loopback's names.
            transport_address = f"http://127.0.0.1:{port}/livez"
            assert (await client.get(transport_address)).status_code == 200
            refused = await client.get(transport_address, headers={"host": "127.0.0.2"})
            assert refused.status_code == 403


@pytest.mark.parametrize(("method", "path"), COSTLY)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"origin": "file://"},
        {"origin": "http://["},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "Cross-Site", "origin": "http://127.0.0.1:8000"},
    ],
    ids=str,
)
async def test_other_sites_are_refused(
    client: httpx.AsyncClient, backend: FakeBackend, method: str, path: str, headers: dict[str, str]
) -> None:
    response = await client.request(method, path, headers=headers, json={"prompt": "a"})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"
    assert backend.requests == []


async def test_own_pages_and_programs_are_served(client: httpx.AsyncClient) -> None:
    for headers in (
        {},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ):
        response = await client.post("/generations", json={"prompt": "a", "steps": 1}, headers=headers)
        assert response.status_code == 201
    # A link from another site leads to the page; only what costs work is refused.
    assert (await client.get("/", headers={"sec-fetch-site": "cross-site"})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere", "/generate", "/metrics", "/openapi.json"])
async def test_every_answer_carries_the_policy(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
        in (headers["content-security-policy"])
    )
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "same-origin"


async def test_voter_cookie_is_signed_and_lasts_a_year(client: httpx.AsyncClient) -> None:
    response = await client.post("/generations", json={"prompt": "a", "steps": 1})
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE_NAME}=")
    for flag in ("HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=31536000"):
        assert flag in cookie
    assert "Secure" not in cookie  # over plain HTTP it would never come back
    again = await client.post("/generations", json={"prompt": "a", "steps": 1})
    assert "set-cookie" not in again.headers


async def test_forged_cookies_make_a_new_voter(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Whoever could forge a cookie could vote as others and delete their pictures."""
    body = (await client.post("/generations", json={"prompt": "a", "steps": 1})).json()
    own = client.cookies[COOKIE_NAME]
    voter = own.rsplit(".", 1)[0]
    forgeries = [
        voter,
        f"{voter}.",
        f"{voter}.AAAA",
        Signer("another secret", salt="darkroom.voter").sign(voter).decode(),
        "x" * 5000,
        "a.b.c",
    ]
    for forged in forgeries:
        async with client_of(app, cookies={COOKIE_NAME: forged}) as stranger:
            response = await stranger.get(f"/generations/{body['batch_id']}")
            assert response.json()["mine"] is False
            assert "set-cookie" in response.headers


async def test_probes_and_pictures_set_no_cookie(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/livez", "/images/x.png", "/models", "/"):
        assert "set-cookie" not in (await client.get(path)).headers


async def test_errors_tell_no_paths_and_no_secrets(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/srv/secret/token=abc")

    monkeypatch.setattr(app.state.services.generations._generations, "get", broken)
    response = await client.get("/generations/x")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "error"
