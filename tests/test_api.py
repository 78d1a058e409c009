"""The JSON API against a fake backend: what is asked is what comes back."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import httpx
from fastapi import FastAPI
from PIL import Image

from app.storage.records import GenerationRecord
from tests.conftest import client_of
from tests.fakes import FakeBackend
from tests.servers import parse_events


async def make(client: httpx.AsyncClient, **fields: object) -> str:
    """A finished generation's id."""
    response = await client.get("/generate", params={"prompt": "a red apple", "steps": 2, **fields})
    assert response.status_code == 200, response.text
    return parse_events(response.text)[-2].json["generation_id"]


async def test_root_names_the_models(client: httpx.AsyncClient) -> None:
    """Programs read `message`, `available_models`, `models_loaded`; their absence breaks the old clients."""
    body = (await client.get("/")).json()
    assert isinstance(body["message"], str)
    assert body["available_models"] == ["base", "quick"]
    assert body["models_loaded"] == ["base", "quick"]


async def test_health_while_all_is_well(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "healthy"
    assert body["device"] == "fake"
    assert body["models_loaded"] == ["base", "quick"]
    assert body["models"]["base"]["state"] == "ready"


async def test_health_while_loading_degraded_and_failed(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """The words of `/health` decide what a supervisor does; a wrong one restarts or routes wrongly."""
    backend.set_model("builtin/base", "loading")
    backend.set_model("extra/quick", "waiting")
    starting = await client.get("/health")
    assert (starting.status_code, starting.json()["status"]) == (503, "starting")
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    backend.set_model("builtin/base", "ready")
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/health")).json()["status"] == "healthy"
    backend.set_model("extra/quick", "failed", "the weights are corrupt")
    degraded = await client.get("/health")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert "the weights are corrupt" in str(degraded.json()["reasons"])
    backend.set_model("builtin/base", "failed", "gone")
    failed = await client.get("/health")
    assert (failed.status_code, failed.json()["status"]) == (503, "unhealthy")


async def test_default_model_failed_but_another_serves(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.set_model("builtin/base", "failed", "gone")
    assert (await client.get("/readyz")).status_code == 200
    backend.set_model("extra/quick", "loading")
    assert (await client.get("/readyz")).status_code == 503


async def test_hung_step_fails_liveness_only_after_a_minute(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.busy_seconds = 59.0
    assert (await client.get("/livez")).status_code == 200
    backend.busy_seconds = 61.0
    assert (await client.get("/livez")).status_code == 503
    backend.busy_seconds, backend.alive = 0.0, False
    assert (await client.get("/livez")).status_code == 503
    assert (await client.get("/readyz")).status_code == 503


async def test_models_list_defaults_limits_and_schedulers(client: httpx.AsyncClient) -> None:
    body = (await client.get("/models")).json()
    assert body["default"] == "base"
    assert [model["name"] for model in body["models"]] == ["base", "quick"]
    assert body["models"][0]["defaults"]["steps"] == 20
    assert {"name": "lcm", "label": "LCM", "max_steps": 50} in body["schedulers"]


async def test_model_that_failed_is_503_and_says_why(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.set_model("builtin/base", "failed", "the weights are corrupt")
    response = await client.get("/generate", params={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_not_ready"
    assert "corrupt" in response.json()["error"]["message"]
    assert (await client.get("/generate", params={"prompt": "x", "model": "quick"})).status_code == 200


async def test_requests_wait_for_a_model_that_loads(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.set_model("builtin/base", "loading")
    body = (await client.post("/generations", json={"prompt": "x", "steps": 2})).json()
    assert (await client.get(f"/generations/{body['batch_id']}")).json()["state"] == "waiting"
    backend.set_model("builtin/base", "ready")
    events = parse_events((await client.get(f"/generations/{body['batch_id']}/events")).text)
    assert events[-2].json["done"] is True


async def test_png_answer_carries_all_it_takes_to_make_it_again(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """`curl -o`: the picture alone; without its parameters nobody could make it again."""
    params = {
        "prompt": "a “red” apple\n☃",
        "seed": 7,
        "steps": 3,
        "guidance_scale": 2.5,
        "scheduler": "euler",
    }
    response = await client.get("/generate", params=params, headers={"accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (64, 64)
    assert image.getpixel((0, 0)) == (7, 32, 64)
    parameters = json.loads(image.text["darkroom"])
    expected = {
        "model": "builtin/base",
        "revision": "r1",
        "prompt": "a “red” apple\n☃",
        "negative_prompt": "",
        "seed": 7,
        "steps": 3,
        "guidance_scale": 2.5,
        "eta": 0.0,
        "width": 64,
        "height": 64,
        "scheduler": "euler",
        "dtype": "float32",
        "device": "fake",
        "alone": True,
    }
    assert {key: parameters[key] for key in expected} == expected
    assert set(parameters["versions"]) >= {"darkroom", "torch", "diffusers"}
    assert "Steps: 3, Sampler: Euler" in image.text["parameters"]
    kept = await client.get(response.headers["content-location"])
    assert kept.content == response.content


async def test_png_answer_of_a_failure_is_an_error_status(client: httpx.AsyncClient) -> None:
    response = await client.get("/generate", params={"prompt": "fail"}, headers={"accept": "image/png"})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The numbers went astray."


async def test_image_is_immutable_and_revalidates(client: httpx.AsyncClient) -> None:
    generation_id = await make(client)
    response = await client.get(f"/images/{generation_id}.png")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in response.headers["cache-control"]
    headers = {"if-none-match": response.headers["etag"]}
    again = await client.get(f"/images/{generation_id}.png", headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.head(f"/images/{generation_id}.png")).status_code == 200


async def test_batch_has_consecutive_seeds_and_outlives_its_reader(client: httpx.AsyncClient) -> None:
    response = await client.post("/generations", json={"prompt": "a cat", "seed": 40, "n": 3, "steps": 2})
    assert response.status_code == 201
    body = response.json()
    assert [view["seed"] for view in body["generations"]] == [40, 41, 42]
    assert {view["batch_id"] for view in body["generations"]} == {body["batch_id"]}
    assert response.headers["location"] == f"/generations/{body['batch_id']}"
    for view in body["generations"]:
        await client.get(f"/generations/{view['id']}/events")
        shown = (await client.get(f"/generations/{view['id']}")).json()
        assert shown["state"] == "done"
        assert shown["mine"] is True
        assert shown["bytes"] == len((await client.get(shown["image_url"])).content)


async def test_a_drawn_seed_differs_and_is_told(client: httpx.AsyncClient) -> None:
    seeds = set()
    for _ in range(3):
        body = (await client.post("/generations", json={"prompt": "a cat", "steps": 1})).json()
        seeds.add(body["generations"][0]["seed"])
    assert len(seeds) == 3


async def test_cancel_frees_the_place_at_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.step_seconds = 0.01
    body = (await client.post("/generations", json={"prompt": "never"})).json()
    cancelled = await client.delete(f"/generations/{body['batch_id']}")
    assert cancelled.status_code == 200
    assert cancelled.json()["state"] == "cancelled"
    assert backend.status().running == 0
    events = parse_events((await client.get(f"/generations/{body['batch_id']}/events")).text)
    assert events[0].json["error"]["code"] == "cancelled"
    assert events[-1].data == "[DONE]"


async def test_only_its_maker_or_an_admin_deletes_a_finished_one(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    generation_id = await make(client)
    others = await make(client)
    path = f"/generations/{generation_id}"
    async with client_of(app) as stranger:
        refused = await stranger.delete(path, headers={"x-forwarded-for": "198.51.100.7"})
        assert refused.status_code == 403
        # Without a token, whoever sits at the machine is its admin.
        assert (await stranger.delete(f"/generations/{others}")).status_code == 204
        app.state.services = replace(app.state.services, admin_token="a token of some length")
        assert (await stranger.delete(path)).status_code == 403
        assert (await stranger.delete(path, headers={"authorization": "Bearer wrong"})).status_code == 403
        another = await make(client)
        right = {"authorization": "Bearer a token of some length"}
        assert (await stranger.delete(f"/generations/{another}", headers=right)).status_code == 204
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert (await client.get(f"/images/{generation_id}.png")).status_code == 404


async def test_unknown_ids_are_404(client: httpx.AsyncClient) -> None:
    for path in ("/generations/nope", "/generations/nope/events", "/images/nope.png", "/nowhere"):
        response = await client.get(path)
        assert response.status_code == 404, path
        assert response.json()["error"]["code"] == "not_found"
    assert (await client.delete("/generations/nope")).status_code == 404


async def test_queue_full_is_a_fast_429(
    client: httpx.AsyncClient, app: FastAPI, backend: FakeBackend
) -> None:
    """Ten times the capacity: accepted, or refused within 50 ms; what is refused is not written."""
    backend.step_seconds = 0.5
    statuses, refusals = [], []
    for _ in range(160):
        began = time.perf_counter()
        response = await client.post("/generations", json={"prompt": "a cat", "steps": 5})
        statuses.append(response.status_code)
        if response.status_code == 429:
            refusals.append(time.perf_counter() - began)
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "too_many_requests"
    share = app.state.services.generations.limits.client_share
    assert statuses == [201] * share + [429] * (160 - share)
    assert sorted(refusals)[len(refusals) // 2] < 0.05  # the median: the machine may be busy
    async with client_of(app, headers={"x-other": "1"}) as other:
        await other.get("/generations/nope")  # gets a cookie, and so a share of its own
        statuses = [
            (await other.post("/generations", json={"prompt": "a cat"})).status_code for _ in range(70)
        ]
    assert set(statuses) == {201, 429}
    records: list[GenerationRecord] = app.state.services.generations._generations.recent(limit=1000)
    assert len(records) == app.state.services.generations.unfinished


async def test_metrics_are_readable(client: httpx.AsyncClient) -> None:
    await make(client)
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'darkroom_generations_total{model="builtin/base",outcome="done"} 1.0' in response.text
    assert 'darkroom_model_ready{model="builtin/base"} 1.0' in response.text


async def test_reference_works_offline_under_a_policy_of_its_own(client: httpx.AsyncClient) -> None:
    """FastAPI's own page loads scripts from elsewhere and runs one inline; ours must do neither."""
    response = await client.get("/docs")
    assert response.status_code == 200
    assert "script-src 'self';" in response.headers["content-security-policy"]
    sources = re.findall(r'(?:src|href|spec-url)="([^"]+)"', response.text)
    assert len(sources) == 3
    for source in sources:
        assert source.startswith(("/", "data:"))
        if source.startswith("/"):
            assert (await client.get(source)).status_code == 200
    script = await client.get(next(source for source in sources if "vendor" in source))
    assert "immutable" in script.headers["cache-control"]
    assert (await client.get(script.url.path)).headers["cache-control"] == "no-cache"
    assert not re.findall(r"<script[^>]*>[^<]", response.text)


async def test_openapi_states_the_limits(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    assert {"/generate", "/generations", "/votes", "/images/{generation_id}.png"} <= set(schema["paths"])
    fields = schema["paths"]["/generations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert fields["properties"]["n"]["maximum"] == 8


def test_importing_the_application_imports_no_torch() -> None:
    """The port is bound before torch is imported; an import of it here would delay `/livez` by seconds."""
    code = "import app.main, sys; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
