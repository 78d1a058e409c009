"""`/metrics`: every figure is held to what was done, read back with Prometheus' own parser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.backends.base import ModelStatus, ModelWork
from app.main import create_app
from app.services.figures import Histogram
from tests.conftest import client_of, make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import eventually, parse_events

BASE, QUICK = "builtin/base", "extra/quick"


class Figures:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        (value,) = [s.value for s in self.samples if s.name == f"darkroom_{name}" and s.labels == labels]
        return float(value)

    def buckets(self, name: str, model: str) -> list[float]:
        found = [
            s for s in self.samples if s.name == f"darkroom_{name}_bucket" and s.labels["model"] == model
        ]
        assert found[-1].labels["le"] == "+Inf"
        return [float(s.value) for s in found]


async def scrape(client: httpx.AsyncClient) -> Figures:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return Figures(answer.text)


async def make(client: httpx.AsyncClient, **fields: Any) -> str:
    query = {"prompt": "an apple", "steps": 2, **fields}
    answer = await client.get("/generate", params=query)
    return str(parse_events(answer.text)[-2].json["generation_id"])


async def test_generations_are_counted_by_model_and_outcome(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A failure means that an operator sees another load, or other faults, than there were."""
    for _ in range(3):
        await make(client)
    await make(client, model="quick")
    await make(client, prompt="please fail")
    response = await client.post("/generations", json={"prompt": "never", "model": "quick"})
    (one,) = response.json()["generations"]
    await eventually(lambda: app.state.services.generations.unfinished_by_model[QUICK, "running"] == 1)
    figures = await scrape(client)
    assert figures("unfinished", model=QUICK, state="running") == 1
    await client.delete(f"/generations/{one['id']}")
    figures = await scrape(client)
    counted = {
        (model, outcome): figures("generations_total", model=model, outcome=outcome)
        for model in (BASE, QUICK)
        for outcome in ("done", "failed", "cancelled")
    }
    assert counted == {
        (BASE, "done"): 3,
        (BASE, "failed"): 1,
        (BASE, "cancelled"): 0,
        (QUICK, "done"): 1,
        (QUICK, "failed"): 0,
        (QUICK, "cancelled"): 1,
    }
    assert figures("unfinished", model=QUICK, state="running") == 0


async def test_the_queue_is_told_by_model(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.slots = 1
    await client.post("/generations", json={"prompt": "never", "model": "quick", "n": 3})
    await client.post("/generations", json={"prompt": "never", "n": 2})
    await eventually(lambda: backend.steps_total == 1)
    figures = await scrape(client)
    assert figures("unfinished", model=QUICK, state="running") == 1
    assert figures("unfinished", model=QUICK, state="waiting") == 2
    assert figures("unfinished", model=BASE, state="waiting") == 2
    assert figures("requests", state="waiting") == 4 and figures("requests", state="running") == 1


async def test_times_are_histograms_by_model(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Wait, first preview and the whole: each once for every picture that got so far, within its bucket."""
    backend.step_seconds = 0.06
    await make(client, steps=3)
    await make(client, steps=3, preview=False)
    await make(client, prompt="please fail", steps=3)
    figures = await scrape(client)
    counts = {"wait_seconds": 3, "first_preview_seconds": 2, "generation_seconds": 2}
    for name, count in counts.items():
        assert figures(f"{name}_count", model=BASE) == count
        assert figures(f"{name}_count", model=QUICK) == 0
        buckets = figures.buckets(name, BASE)
        assert buckets == sorted(buckets) and buckets[-1] == count
        assert figures.families[f"darkroom_{name}"].type == "histogram"
    assert 0.12 <= figures("first_preview_seconds_sum", model=BASE) < 5
    assert 0.36 <= figures("generation_seconds_sum", model=BASE) < 10
    assert figures("wait_seconds_sum", model=BASE) < figures("generation_seconds_sum", model=BASE)


async def test_waiting_counts_until_the_start(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.slots, backend.step_seconds = 1, 0.05
    await asyncio.gather(*(make(client, steps=6) for _ in range(2)))
    figures = await scrape(client)
    assert figures("wait_seconds_sum", model=BASE) >= 0.29, "the second waited for the six steps of the first"


async def test_refusals_are_counted_by_reason(tmp_path: Path) -> None:
    catalog = make_catalog()
    backend = FakeBackend(catalog)
    settings = make_settings(tmp_path, max_queue=3, max_per_client=2)
    app = create_app(settings, backend=backend, catalog=catalog)
    async with app.router.lifespan_context(app), client_of(app) as one, client_of(app) as two:
        for client in (one, two):
            await client.get("/health")
            await make(client, steps=1)
        assert (await one.post("/generations", json={"prompt": "never", "n": 2})).status_code == 201
        assert (await one.post("/generations", json={"prompt": "never"})).status_code == 429
        assert (await two.post("/generations", json={"prompt": "never", "n": 2})).status_code == 429
        backend.set_model(QUICK, "unloaded")
        for _ in range(2):
            assert (await two.get("/generate?prompt=a&model=quick")).status_code == 503
        assert (await two.get("/generate?prompt=a&model=nothing")).status_code == 400
        figures = await scrape(one)
    reasons = {"client_share": 1, "queue_full": 1, "model_not_ready": 2, "stopping": 0}
    assert {reason: figures("refused_total", reason=reason) for reason in reasons} == reasons


async def test_votes_are_counted_by_kind(client: httpx.AsyncClient) -> None:
    a, b = await make(client), await make(client)
    for vote in (
        {"kind": "thumb", "shown": [a], "value": 1},
        {"kind": "rating", "shown": [a], "value": 4},
        {"kind": "choice", "shown": [a, b], "chosen": b},
        {"kind": "choice", "shown": [a, b], "chosen": "tie"},
    ):
        assert (await client.post("/votes", json=vote)).status_code == 200
    assert (await client.post("/votes", json={"kind": "thumb", "shown": [a], "value": 7})).status_code == 400
    figures = await scrape(client)
    kinds = {"thumb": 1, "rating": 1, "choice": 2}
    assert {kind: figures("votes_total", kind=kind) for kind in kinds} == kinds


async def test_the_engines_work_and_memory_by_model(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.models[BASE] = ModelStatus(
        BASE, "ready", 1.0, batch_size=8, step_seconds=0.25, memory_bytes=900, shared_bytes=600
    )
    backend.set_model(QUICK, "unloaded")
    backend.memory_bytes = {"fake": 900}
    backend.work = {BASE: ModelWork(batches=10, rows=60, steps=30, step_seconds=2.5)}
    figures = await scrape(client)
    assert figures("model_batches_total", model=BASE) == 10
    assert figures("model_rows_total", model=BASE) == 60
    assert figures("model_steps_total", model=BASE) == 30
    assert figures("model_step_seconds_total", model=BASE) == 2.5
    assert figures("model_rows_total", model=QUICK) == 0, "a model without work has figures all the same"
    assert figures("model_batch_limit_rows", model=BASE) == 8
    assert figures("model_lone_step_seconds", model=BASE) == 0.25
    assert figures("model_memory_bytes", model=BASE, held="alone") == 300
    assert figures("model_memory_bytes", model=BASE, held="shared") == 600
    assert figures("memory_bytes", device="fake") == 900
    states = {"ready": 1, "unloaded": 1, "waiting": 0, "loading": 0, "unloading": 0, "failed": 0}
    assert {state: figures("models", state=state) for state in states} == states
    assert (figures("model_ready", model=BASE), figures("model_ready", model=QUICK)) == (1, 0)


async def test_nobody_can_make_the_figures_grow(client: httpx.AsyncClient) -> None:
    """Labels from outside (prompts, unknown models, addresses) would fill Prometheus' memory, and tell."""
    before = await scrape(client)
    for number in range(5):
        await client.get("/generate", params={"prompt": f"secret {number}", "model": f"strange-{number}"})
        await client.post(f"/models/strange/{number}/load")
        await client.get(f"/nowhere/{number}")
        await make(client, prompt=f"secret {number}", seed=number)
    after = await scrape(client)
    series = [{(s.name, tuple(s.labels.items())) for s in f.samples} for f in (before, after)]
    assert series[0] == series[1]
    assert not any("strange" in str(s) or "secret" in str(s) for s in after.samples)


@pytest.mark.parametrize(
    ("values", "expected"), [([], [0, 0, 0]), ([1.0, 1.5, 9.0], [1, 2, 3]), ([0.0], [1, 1, 1])]
)
def test_a_value_counts_for_every_bound_that_it_does_not_exceed(
    values: list[float], expected: list[float]
) -> None:
    histogram = Histogram((1.0, 2.0))
    for value in values:
        histogram.observe(value)
    assert histogram.buckets() == list(zip(["1.0", "2.0", "+Inf"], expected, strict=True))
    assert histogram.total == sum(values)
