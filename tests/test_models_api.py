"""Loading and unloading over HTTP and on the Models page: who may, what it answers, what health says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from tests.conftest import client_of, make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import eventually, parse_events
from tests.test_pages import HTML, HTMX, check_markup, parsed

TOKEN = "a long token for tests"
VERBS = ["load", "unload", "reload"]


def state_of(backend: FakeBackend, model: str = "extra/quick") -> str:
    return backend.models[model].state


async def test_a_model_leaves_and_comes_back(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """A failure means that memory cannot be given back at run time, or a model that left never returns."""
    answer = await client.post("/models/extra/quick/unload")
    assert answer.status_code == 202
    assert answer.json()["id"] == "extra/quick" and answer.json()["state"] in ("unloading", "unloaded")
    assert state_of(backend) == "unloaded"
    backend.load_seconds = 0.02
    answer = await client.post("/models/extra/quick/load")
    assert (answer.status_code, answer.json()["state"]) == (202, "loading")
    await eventually(lambda: state_of(backend) == "ready")
    backend.load_seconds = 0.0
    assert (await client.post("/models/extra/quick/reload")).status_code == 202
    await eventually(lambda: state_of(backend) == "ready")
    assert backend.asked == [("unload", "extra/quick"), ("load", "extra/quick"), ("load", "extra/quick")]


async def test_asking_twice_changes_nothing(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """An impatient second click must not drop a model that is already there, or load it twice."""
    assert (await client.post("/models/extra/quick/load")).json()["state"] == "ready"
    assert backend.asked == []
    await client.post("/models/extra/quick/unload")
    assert (await client.post("/models/extra/quick/unload")).json()["state"] == "unloaded"
    assert backend.asked == [("unload", "extra/quick")]


@pytest.mark.parametrize("verb", VERBS)
async def test_an_unknown_model_names_the_known_ones(
    client: httpx.AsyncClient, backend: FakeBackend, verb: str
) -> None:
    answer = await client.post(f"/models/extra/nothing/{verb}")
    assert answer.status_code == 404
    assert "known models are base, quick" in answer.json()["error"]["message"]
    assert backend.asked == []


@pytest.mark.parametrize("verb", VERBS)
async def test_other_sites_cannot_change_models(
    client: httpx.AsyncClient, backend: FakeBackend, verb: str
) -> None:
    """A page of another site that is open on the operator's own machine comes from loopback as well."""
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert (await client.post(f"/models/extra/quick/{verb}", headers=headers)).status_code == 403
    assert backend.asked == []


@pytest.mark.parametrize("verb", VERBS)
async def test_from_elsewhere_it_takes_the_admin_token(tmp_path: Path, verb: str) -> None:
    """A failure means that every visitor may take the models away from all the others."""
    catalog = make_catalog()
    backend = FakeBackend(catalog)
    app = create_app(make_settings(tmp_path, admin_token=TOKEN), backend=backend, catalog=catalog)
    path = f"/models/extra/quick/{verb}"
    async with app.router.lifespan_context(app), client_of(app) as client:
        for given in (None, "Bearer wrong", TOKEN[:-1]):
            answer = await client.post(path, headers={"authorization": given} if given else {})
            assert answer.status_code == 403 and "admin token" in answer.json()["error"]["message"]
        assert backend.asked == []
        assert (await client.post(path, headers={"authorization": f"Bearer {TOKEN}"})).status_code == 202


async def test_without_a_token_only_this_machine_may(app: FastAPI, backend: FakeBackend) -> None:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as far:
        assert (await far.post("/models/extra/quick/unload")).status_code == 403
        page = (await far.get("/models", headers=HTML)).text
    assert backend.asked == [] and "/unload" not in page, "buttons that only refuse"
    async with client_of(app, headers={"x-forwarded-for": "192.0.2.7"}) as proxied:
        assert (await proxied.post("/models/extra/quick/unload")).status_code == 403


# ---------------------------------------------------------------------- requests


async def test_what_runs_finishes_and_new_ones_are_refused_in_words(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A failure means that unloading kills somebody's picture, or leaves somebody waiting for ever."""
    backend.step_seconds = 0.02
    query = {"prompt": "an apple", "model": "quick", "steps": 20}
    running = asyncio.create_task(client.get("/generate", params=query))
    await eventually(lambda: backend.steps_total > 1)
    await client.post("/models/extra/quick/unload")
    assert state_of(backend) == "unloading"
    late = await client.get("/generate", params=query)
    assert late.status_code == 503 and int(late.headers["retry-after"]) > 0
    error = late.json()["error"]
    assert error["code"] == "model_not_ready" and error["field"] == "model"
    assert error["message"] == "model: quick is not loaded; loaded are base"
    assert parse_events((await running).text)[-2].json["done"] is True
    await eventually(lambda: state_of(backend) == "unloaded")
    assert (await client.get("/generate", params={**query, "model": "base"})).status_code == 200


async def test_on_demand_a_request_waits_for_its_model(tmp_path: Path) -> None:
    """With a bound on models in memory, one that is not there is no refusal: it is fetched."""
    catalog = make_catalog()
    backend = FakeBackend(catalog, on_demand=True)
    backend.load_seconds = 0.05
    app = create_app(make_settings(tmp_path), backend=backend, catalog=catalog)
    async with app.router.lifespan_context(app), client_of(app) as client:
        backend.set_model("builtin/base", "unloaded")
        backend.set_model("extra/quick", "unloaded")
        assert (await client.get("/health")).json()["status"] == "healthy"
        assert (await client.get("/readyz")).status_code == 200
        page = (await client.get("/models", headers=HTML)).text
        assert "loaded when it is asked for" in page and 'href="/?model=quick"' in page
        answer = await client.get("/generate", params={"prompt": "a", "model": "quick", "steps": 2})
        assert parse_events(answer.text)[-2].json["done"] is True
        assert state_of(backend) == "ready" and backend.asked == [("load", "extra/quick")]


# ---------------------------------------------------------------------- health


async def test_an_unloaded_model_is_no_failure(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """An operator who unloads a model must not be woken for it; only with nothing left there is a reason."""
    backend.set_model("extra/quick", "unloaded")
    health = (await client.get("/health")).json()
    assert (health["status"], health["models_loaded"], health["reasons"]) == ("healthy", ["base"], [])
    backend.set_model("builtin/base", "unloaded")
    nothing = await client.get("/health")
    assert (nothing.status_code, nothing.json()["status"]) == (503, "unhealthy")
    assert nothing.json()["reasons"] == ["No model is loaded."]
    assert (await client.get("/livez")).status_code == 200, "a restart would not help"
    backend.set_model("extra/quick", "loading")
    assert (await client.get("/health")).json()["status"] == "starting"
    backend.set_model("extra/quick", "ready")
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/")).json()["models_loaded"] == ["quick"]
    backend.set_model("builtin/base", "failed", "The weights are damaged.")
    assert (await client.get("/health")).json()["status"] == "degraded"


async def test_memory_is_told_alone_and_shared(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """What unloading gives back is what a model holds alone; summing shared weights twice would hide that."""
    for model, own in {"builtin/base": 400_000, "extra/quick": 2_000_000_000}.items():
        backend.models[model] = replace(
            backend.models[model], memory_bytes=own + 600_000_000, shared_bytes=600_000_000
        )
    backend.memory_bytes = {"fake": 2_600_400_000}
    base, quick = (await client.get("/models")).json()["models"]
    keys = ("memory_bytes", "alone_bytes", "shared_bytes")
    assert [base[key] for key in keys] == [600_400_000, 400_000, 600_000_000]
    assert [quick[key] for key in keys] == [2_600_000_000, 2_000_000_000, 600_000_000]
    health = (await client.get("/health")).json()
    assert health["devices"] == {"fake": {"models": ["base", "quick"], "memory_bytes": 2_600_400_000}}
    page = (await client.get("/models", headers=HTML)).text
    assert "2.6 GB: 2.0 GB alone, 600 MB shared" in page


# ---------------------------------------------------------------------- the page


def buttons(page: str) -> set[str]:
    return {a["action"] for tag, a in parsed(page) if tag == "form" and a["action"].startswith("/models/")}


@pytest.mark.parametrize(
    ("state", "words", "verbs", "polls"),
    [
        ("waiting", "waiting for its turn", {"unload"}, True),
        ("loading", "reading the weights", {"unload"}, True),
        ("ready", "ready", {"unload", "reload"}, False),
        ("unloading", "finishing its last pictures", {"load"}, True),
        ("unloaded", "not loaded", {"load"}, False),
        ("failed", "The weights are damaged.", {"reload", "unload"}, False),
    ],
)
async def test_the_page_tells_every_state_and_offers_what_can_be_done(
    client: httpx.AsyncClient, backend: FakeBackend, state: str, words: str, verbs: set[str], polls: bool
) -> None:
    """A failure means that the operator sees a wrong state, or a page that stays old while things change."""
    error = "The weights are damaged." if state == "failed" else None
    backend.set_model("extra/quick", state, error)  # type: ignore[arg-type]
    page = (await client.get("/models", headers=HTML)).text
    check_markup(page)
    part = page[page.index('id="model-extra--quick"') :]
    assert words in part
    assert {path.rpartition("/")[2] for path in buttons(part)} == verbs
    assert ('hx-get="/models/list"' in page) is polls
    assert ('<progress max="100" value="40"' in part) is (state in ("waiting", "loading"))
    fragment = (await client.get("/models/list", headers=HTMX)).text
    assert fragment.strip() in page and "<html" not in fragment


async def test_a_button_answers_with_the_list_and_the_status(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """A failure means that nothing moves on the page after a click, or a click without scripts is lost."""
    backend.load_seconds = 5
    answer = await client.post("/models/extra/quick/reload", headers=HTMX)
    assert answer.status_code == 202
    for target in ("#model-list", "#status", "#models-problem"):
        assert f'<hx-partial hx-target="{target}"' in answer.text
    assert 'hx-get="/models/list"' in answer.text and 'hx-get="/studio/status"' in answer.text
    plain = await client.post("/models/extra/quick/unload", headers=HTML)
    assert (plain.status_code, plain.headers["location"]) == (303, "/models")
    refused = await client.post("/models/extra/nothing/load", headers=HTMX)
    assert refused.status_code == 404 and 'class="problem"' in refused.text


async def test_the_form_says_which_models_are_not_loaded(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.set_model("extra/quick", "unloaded")
    assert "Quick (not loaded)" in (await client.get("/", headers=HTML)).text
    answer = await client.post("/generations", data={"prompt": "x", "model": "quick"}, headers=HTMX)
    assert answer.status_code == 503 and "quick is not loaded; loaded are base" in answer.text.lower()
