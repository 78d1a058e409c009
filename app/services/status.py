"""How the process is: for people, for probes, for Prometheus."""

from __future__ import annotations

import time

from app.backends.base import Backend, BackendStatus, ModelStatus
from app.catalog.entry import Catalog, CatalogEntry
from app.services.generations import GenerationService
from app.services.pictures import software_versions
from app.services.views import HealthStatus, HealthView, ModelView

HUNG_SECONDS = 60.0


class StatusService:
    """Answers from memory, so that a probe never waits for a database or a step.

    Args:
        catalog: What can be generated with.
        backend: What runs requests.
        generations: For the queue's figures.
    """

    def __init__(self, catalog: Catalog, backend: Backend, generations: GenerationService) -> None:
        self._catalog = catalog
        self._backend = backend
        self._generations = generations
        self._began = time.monotonic()
        self._storage_seen = False
        self._storage_problem: str | None = None

    def storage_answers(self) -> None:
        """The database answered."""
        self._storage_seen = True
        self._storage_problem = None

    def storage_fails(self, message: str) -> None:
        """The database did not answer; `message` is a sentence for people."""
        self._storage_problem = message

    def backend_status(self) -> BackendStatus:
        """The backend's own figures."""
        return self._backend.status()

    def models(self) -> list[ModelView]:
        """All models with their state, in the order of the catalogue."""
        backend = self._backend.status()
        states = {status.id: status for status in backend.models}
        return [
            self._model(entry, states.get(entry.id) or ModelStatus(entry.id, "waiting"), backend.on_demand)
            for entry in self._catalog.entries
        ]

    def model(self, model_id: str) -> ModelView:
        """The model of that full id."""
        return next(model for model in self.models() if model.id == model_id)

    def health(self) -> HealthView:
        """Everything about the process in one snapshot."""
        backend = self._backend.status()
        models = tuple(self.models())
        live = self._live(backend)
        ready = live and self._ready(backend, models)
        return HealthView(
            status=self._status(backend, models, live),
            reasons=tuple(self._reasons(backend, models)),
            device=backend.device,
            memory_bytes=dict(backend.memory_bytes),
            models=models,
            waiting=backend.waiting,
            running=backend.running,
            queue_limit=self._generations.limits.queue,
            live=live,
            ready=ready,
            storage=self._storage_works,
            safety_checker=all(entry.safety_checker for entry in self._catalog.entries),
            uptime_seconds=round(time.monotonic() - self._began, 1),
            version=software_versions()["darkroom"],
        )

    @property
    def _storage_works(self) -> bool:
        return self._storage_seen and self._storage_problem is None

    def _live(self, backend: BackendStatus) -> bool:
        """False once a supervisor should restart the process: the engine is lost, or a step hangs."""
        return backend.alive and backend.busy_seconds <= HUNG_SECONDS

    def _ready(self, backend: BackendStatus, models: tuple[ModelView, ...]) -> bool:
        """The default model serves or, once the first loading has ended, any model does.

        A model that is loaded on demand serves as well: requests wait for it.
        """
        if not self._storage_works or self._generations.stopping:
            return False
        default = next((model for model in models if model.default), None)
        if default is not None and default.state == "ready":
            return True
        return backend.loading_ended and any(model.serves for model in models)

    def _status(self, backend: BackendStatus, models: tuple[ModelView, ...], live: bool) -> HealthStatus:
        if not live or self._generations.stopping or self._storage_problem is not None:
            return "unhealthy"
        if not self._ready(backend, models):
            loading = any(model.state in ("waiting", "loading") for model in models)
            return "starting" if loading or not self._storage_seen else "unhealthy"
        return "degraded" if any(model.state == "failed" for model in models) else "healthy"

    def _reasons(self, backend: BackendStatus, models: tuple[ModelView, ...]) -> list[str]:
        reasons = []
        if not backend.alive:
            reasons.append("The engine has stopped; the process must be restarted.")
        elif backend.busy_seconds > HUNG_SECONDS:
            reasons.append(f"A step has been running for {backend.busy_seconds:.0f} s.")
        if self._storage_problem is not None:
            reasons.append(self._storage_problem)
        elif not self._storage_seen:
            reasons.append("The database is being opened.")
        if self._generations.stopping:
            reasons.append("The process is ending.")
        for model in models:
            if model.state == "failed":
                reasons.append(f"{model.name} could not be loaded: {model.error or 'unknown reason'}")
            elif model.state in ("waiting", "loading"):
                stage = f" ({model.stage})" if model.stage else ""
                reasons.append(f"{model.name} is loading: {model.progress:.0%}{stage}.")
        if not backend.on_demand and all(model.state in ("unloading", "unloaded") for model in models):
            reasons.append("No model is loaded.")
        return reasons

    def _model(self, entry: CatalogEntry, status: ModelStatus, on_demand: bool) -> ModelView:
        return ModelView(
            id=entry.id,
            name=self._catalog.public_name(entry),
            label=entry.label,
            best_for=entry.best_for,
            description=entry.description,
            licence=entry.licence,
            demonstration=entry.demonstration,
            default=entry is self._catalog.default,
            examples=entry.examples,
            defaults=entry.defaults,
            limits=entry.limits,
            state=status.state,
            progress=status.progress,
            stage=status.stage,
            error=status.error,
            dtype=status.dtype,
            device=status.device,
            batch_size=status.batch_size,
            step_seconds=status.step_seconds,
            memory_bytes=status.memory_bytes,
            shared_bytes=status.shared_bytes,
            serves=status.state == "ready" or (on_demand and status.state != "failed"),
            revision=status.revision,
            precision_psnr=status.precision_psnr,
        )
