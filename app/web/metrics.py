"""`/metrics` for Prometheus, collected when it is asked for: counting costs the hot path nothing."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

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
        yield from self._generations()
        yield from self._backend()
        yield from self._models()

    def _generations(self) -> Iterator[Metric]:
        generations = self._services.generations
        ended = CounterMetricFamily("darkroom_generations", "Generations that ended.", labels=["state"])
        for state, count in generations.finished_total.items():
            ended.add_metric([state], count)
        yield ended
        yield CounterMetricFamily("darkroom_refused", "Requests refused with 429.", generations.refused_total)
        yield GaugeMetricFamily("darkroom_unfinished", "Generations not ended.", generations.unfinished)
        yield GaugeMetricFamily("darkroom_watchers", "Readers of streams.", generations.watchers)
        yield CounterMetricFamily("darkroom_votes", "Votes stored.", self._services.votes.cast_total)

    def _backend(self) -> Iterator[Metric]:
        status = self._services.status.backend_status()
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

    def _models(self) -> Iterator[Metric]:
        health = self._services.status.health()
        ready = GaugeMetricFamily("darkroom_model_ready", "1 if the model serves.", labels=["model"])
        memory = GaugeMetricFamily("darkroom_model_memory_bytes", "Weights held.", labels=["model"])
        for model in health.models:
            ready.add_metric([model.id], float(model.state == "ready"))
            memory.add_metric([model.id], model.memory_bytes)
        yield ready
        yield memory
        yield GaugeMetricFamily("darkroom_ready", "1 if requests can be served.", float(health.ready))
        yield GaugeMetricFamily(
            "darkroom_uptime_seconds", "Since the process started.", health.uptime_seconds
        )


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
