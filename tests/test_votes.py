"""Votes over HTTP, on SQLite and on PostgreSQL: checked, changed, never doubled, never lost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from tests.conftest import client_of, make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import parse_events


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Each test runs on both databases."""
    return make_settings(tmp_path / "data", database_url=database_url)


async def make(client: httpx.AsyncClient) -> str:
    response = await client.get("/generate", params={"prompt": "a red apple", "steps": 1})
    generation_id: str = parse_events(response.text)[-2].json["generation_id"]
    return generation_id


def rows(app: FastAPI) -> int:
    counts: dict[str, int] = app.state.services.votes._votes.counts()
    return sum(counts.values())


async def test_vote_is_kept_changed_and_withdrawn(client: httpx.AsyncClient, app: FastAPI) -> None:
    picture = await make(client)
    up = await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": 1})
    assert up.status_code == 200
    assert up.json()["value"] == 1
    assert (await client.get(f"/generations/{picture}")).json()["vote"] == 1
    down = await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": -1})
    assert down.json()["id"] == up.json()["id"]
    assert (await client.get(f"/generations/{picture}")).json()["vote"] == -1
    assert rows(app) == 1
    body = {"kind": "thumb", "shown": [picture]}
    assert (await client.request("DELETE", "/votes", json=body)).status_code == 204
    assert (await client.get(f"/generations/{picture}")).json()["vote"] is None
    assert (await client.request("DELETE", "/votes", json=body)).status_code == 204


async def test_ratings_and_choices(client: httpx.AsyncClient, app: FastAPI) -> None:
    a, b, c = [await make(client) for _ in range(3)]
    rating = await client.post("/votes", json={"kind": "rating", "shown": [a], "value": 4})
    assert rating.status_code == 200
    for chosen in (b, "tie", "all_bad"):
        choice = await client.post("/votes", json={"kind": "choice", "shown": [a, b, c], "chosen": chosen})
        assert choice.status_code == 200
        assert choice.json()["chosen"] == chosen
    reordered = {"kind": "choice", "shown": [c, b, a], "chosen": c}
    assert (await client.post("/votes", json=reordered)).json()["chosen"] == c
    assert rows(app) == 2


async def test_two_voters_have_two_votes(client: httpx.AsyncClient, app: FastAPI) -> None:
    picture = await make(client)
    body = {"kind": "thumb", "shown": [picture], "value": 1}
    await client.post("/votes", json=body)
    async with client_of(app) as other:
        await other.post("/votes", json=body)
        assert (await other.get(f"/generations/{picture}")).json()["vote"] == 1
    assert rows(app) == 2


async def test_fifty_simultaneous_duplicates_are_one_row(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A double click, or a client that retries: more rows would count one person many times."""
    picture = await make(client)
    body = {"kind": "thumb", "shown": [picture], "value": 1}
    key = {"Idempotency-Key": secrets.token_hex(8)}
    requests = [client.post("/votes", json=body, headers=key if n % 2 else {}) for n in range(50)]
    responses = await asyncio.gather(*requests)
    assert {response.status_code for response in responses} == {200}
    assert len({response.json()["id"] for response in responses}) == 1
    assert rows(app) == 1


async def test_idempotency_key_with_another_body_is_a_conflict(client: httpx.AsyncClient) -> None:
    picture = await make(client)
    key = {"Idempotency-Key": "once"}
    first = await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": 1}, headers=key)
    again = await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": 1}, headers=key)
    assert again.json() == first.json()
    other = await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": -1}, headers=key)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "conflict"
    assert (await client.get(f"/generations/{picture}")).json()["vote"] == 1


async def test_wrong_votes_are_refused(client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend) -> None:
    picture, other = await make(client), await make(client)
    unfinished = (await client.post("/generations", json={"prompt": "never"})).json()["batch_id"]
    failed_events = parse_events((await client.get("/generate", params={"prompt": "fail"})).text)
    failed = failed_events[-2].json["generation_id"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "thumb", "shown": ["unknown"], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": ["' OR 1=1 --"], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": ["a\x00b"], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [unfinished], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [failed], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [picture, other], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [picture, picture], "value": 1}, "shown"),
        ({"kind": "thumb", "shown": picture, "value": 1}, "shown"),
        ({"kind": "thumb", "shown": [picture], "value": 0}, "value"),
        ({"kind": "thumb", "shown": [picture], "value": 2}, "value"),
        ({"kind": "thumb", "shown": [picture], "value": True}, "value"),
        ({"kind": "thumb", "shown": [picture], "value": "1"}, "value"),
        ({"kind": "thumb", "shown": [picture]}, "value"),
        ({"kind": "thumb", "shown": [picture], "value": 1, "chosen": picture}, "chosen"),
        ({"kind": "rating", "shown": [picture], "value": 6}, "value"),
        ({"kind": "rating", "shown": [picture], "value": 0}, "value"),
        ({"kind": "choice", "shown": [picture], "chosen": picture}, "shown"),
        ({"kind": "choice", "shown": [picture, other], "chosen": unfinished}, "chosen"),
        ({"kind": "choice", "shown": [picture, other]}, "chosen"),
        ({"kind": "choice", "shown": [picture, other], "chosen": "tie", "value": 1}, "value"),
        ({"kind": "choice", "shown": [picture, *[f"x{n}" for n in range(16)]], "chosen": "tie"}, "shown"),
        ({"kind": "applause", "shown": [picture], "value": 1}, "kind"),
        ({"kind": "thumb", "shown": [picture], "value": 1, "voter": "me"}, "voter"),
    ]
    for body, field in cases:
        response = await client.post("/votes", json=body)
        assert response.status_code in (400, 422), body
        assert response.json()["error"]["field"] == field, body
    for key in ("", "x" * 201, "a\tb"):
        response = await client.post(
            "/votes",
            json={"kind": "thumb", "shown": [picture], "value": 1},
            headers={"Idempotency-Key": key},
        )
        assert response.status_code == 400, key
    assert rows(app) == 0


async def test_thirty_three_thousand_ids_are_refused_quickly(client: httpx.AsyncClient) -> None:
    body = {"kind": "choice", "shown": [str(n) for n in range(33_000)], "chosen": "tie"}
    async with asyncio.timeout(2):
        assert (await client.post("/votes", json=body)).status_code == 413


@pytest.fixture
async def restarted(
    client: httpx.AsyncClient, app: FastAPI, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A second application on the same data, as after a restart, with the same browser."""
    picture = await make(client)
    await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": -1})
    catalog = make_catalog()
    application = create_app(settings, backend=FakeBackend(catalog), catalog=catalog)
    async with (
        application.router.lifespan_context(application),
        client_of(application, cookies=client.cookies) as opened,
    ):
        opened.headers["x-picture"] = picture
        yield opened


async def test_vote_and_picture_survive_a_restart(restarted: httpx.AsyncClient) -> None:
    picture = restarted.headers["x-picture"]
    shown = (await restarted.get(f"/generations/{picture}")).json()
    assert (shown["vote"], shown["mine"], shown["state"]) == (-1, True, "done")
    assert (await restarted.get(f"/images/{picture}.png")).status_code == 200


async def test_vote_outlives_its_picture_with_all_it_takes_to_make_it_again(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    from sqlalchemy import select

    from app.storage.tables import VoteRow

    picture = await make(client)
    await client.post("/votes", json={"kind": "thumb", "shown": [picture], "value": 1})
    assert (await client.delete(f"/generations/{picture}")).status_code == 204
    with app.state.services.votes._votes._database.reading() as session:
        (stored,) = session.scalars(select(VoteRow))
    (recipe,) = stored.pictures
    assert recipe["model"] == "builtin/base"
    assert recipe["revision"] == "r1"
    assert {"seed", "prompt", "steps", "guidance_scale", "scheduler", "width", "height", "versions"} <= set(
        recipe
    )
