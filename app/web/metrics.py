"""`/metrics` for Prometheus, collected when it is asked for: counting costs the hot path nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.backends.base import BackendStatus, ModelState, ModelWork
from app.services.figures import Histogram
from app.services.views import HealthView
from app.web.dependencies import Services

router = APIRouter(tags=["status"])


class DarkroomCollector(Collector):
    """Reads the services' figures at every scrape.

    Args:
        services: The services.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """All metrics right now."""
        status = self._services.status.backend_status()
        yield from self._generations()
        yield from self._times()
        yield from self._backend(status)
        yield from self._work(status)
        yield from self._models(self._services.status.health())

    def _generations(self) -> Iterator[Metric]:
        generations, figures = self._services.generations, self._services.generations.figures
        ended = CounterMetricFamily(
            "darkroom_generations", "Generations that ended.", labels=["model", "outcome"]
        )
        for (model, outcome), count in figures.ended.items():
            ended.add_metric([model, outcome], count)
        yield ended
        refused = CounterMetricFamily("darkroom_refused", "Requests not taken on.", labels=["reason"])
        for reason, count in figures.refused.items():
            refused.add_metric([reason], count)
        yield refused
        unfinished = GaugeMetricFamily(
            "darkroom_unfinished", "Generations that wait or run.", labels=["model", "state"]
        )
        held = generations.unfinished_by_model
        for entry in self._services.catalog.entries:
            for state in ("waiting", "running"):
                unfinished.add_metric([entry.id, state], held[entry.id, state])
        yield unfinished
        yield GaugeMetricFamily("darkroom_watchers", "Readers of streams.", generations.watchers)
        votes = CounterMetricFamily("darkroom_votes", "Votes stored.", labels=["kind"])
        for kind, count in self._services.votes.cast_total.items():
            votes.add_metric([kind], count)
        yield votes

    def _times(self) -> Iterator[Metric]:
        figures = self._services.generations.figures
        yield _histogram("darkroom_wait_seconds", "From the request until it joined.", figures.waits)
        yield _histogram(
            "darkroom_first_preview_seconds", "From the request to its first preview.", figures.first_previews
        )
        yield _histogram(
            "darkroom_generation_seconds", "From the request to its finished picture.", figures.wholes
        )

    def _backend(self, status: BackendStatus) -> Iterator[Metric]:
        queue = GaugeMetricFamily("darkroom_requests", "Requests in the engine.", labels=["state"])
        queue.add_metric(["waiting"], status.waiting)
        queue.add_metric(["running"], status.running)
        yield queue
        yield CounterMetricFamily("darkroom_steps", "Denoising steps, summed.", status.steps_total)
        yield CounterMetricFamily("darkroom_step_seconds", "Time in steps.", status.step_seconds_total)
        yield CounterMetricFamily(
            "darkroom_preview_seconds", "Time in previews.", status.preview_seconds_total
        )
        yield GaugeMetricFamily("darkroom_step_busy_seconds", "Age of the present step.", status.busy_seconds)
        yield GaugeMetricFamily("darkroom_engine_alive", "1 unless the engine is lost.", float(status.alive))
        memory = GaugeMetricFamily(
            "darkroom_memory_bytes", "Weights held, those of several models once.", labels=["device"]
        )
        for device, held in status.memory_bytes.items():
            memory.add_metric([device], held)
        yield memory

    def _work(self, status: BackendStatus) -> Iterator[Metric]:
        """Mean step time is seconds / batches, mean batch size rows / batches, over any span of time."""
        batches = CounterMetricFamily("darkroom_model_batches", "Forwards.", labels=["model"])
        rows = CounterMetricFamily("darkroom_model_rows", "Forward rows, summed.", labels=["model"])
        steps = CounterMetricFamily("darkroom_model_steps", "Steps, summed over requests.", labels=["model"])
        seconds = CounterMetricFamily("darkroom_model_step_seconds", "Time in forwards.", labels=["model"])
        for entry in self._services.catalog.entries:
            work = status.work.get(entry.id, ModelWork())
            batches.add_metric([entry.id], work.batches)
            rows.add_metric([entry.id], work.rows)
            steps.add_metric([entry.id], work.steps)
            seconds.add_metric([entry.id], work.step_seconds)
        yield from (batches, rows, steps, seconds)

    def _models(self, health: HealthView) -> Iterator[Metric]:
        ready = GaugeMetricFamily("darkroom_model_ready", "1 if the model is loaded.", labels=["model"])
        memory = GaugeMetricFamily(
            "darkroom_model_memory_bytes",
            "Weights held alone, and together with others.",
            labels=["model", "held"],
        )
        batch = GaugeMetricFamily(
            "darkroom_model_batch_limit_rows", "Most rows of a batch, as measured.", labels=["model"]
        )
        alone = GaugeMetricFamily(
            "darkroom_model_lone_step_seconds", "A guided step alone, as measured.", labels=["model"]
        )
        states = GaugeMetricFamily("darkroom_models", "Models of the catalogue.", labels=["state"])
        for model in health.models:
            ready.add_metric([model.id], float(model.state == "ready"))
            memory.add_metric([model.id, "alone"], model.alone_bytes)
            memory.add_metric([model.id, "shared"], model.shared_bytes)
            batch.add_metric([model.id], model.batch_size)
            alone.add_metric([model.id], model.step_seconds)
        for state in get_args(ModelState):
            states.add_metric([state], sum(model.state == state for model in health.models))
        yield from (ready, memory, batch, alone, states)
        yield GaugeMetricFamily("darkroom_ready", "1 if requests can be served.", float(health.ready))
        yield GaugeMetricFamily(
            "darkroom_uptime_seconds", "Since the process started.", health.uptime_seconds
        )


def _histogram(name: str, words: str, by_model: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, words, labels=["model"])
    for model, histogram in by_model.items():
        family.add_metric([model], histogram.buckets(), histogram.total)
    return family


def make_registry(services: Services) -> CollectorRegistry:
    """A registry of our own: nothing that another library registers globally leaks in."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DarkroomCollector(services))
    return registry


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format."""
    registry: CollectorRegistry = request.app.state.metrics
    text = generate_latest(registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})
