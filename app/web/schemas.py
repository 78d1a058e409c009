"""What comes in and goes out, as pydantic models: they check types and make the OpenAPI document.

Ranges that hold for every model are stated here, so that they are documented; `app.services.params` checks
them again together with those of the chosen model. Bodies are strict: `true`, `"7"` and `7.5` are no
integers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.services.params import (
    MAX_GUIDANCE_SCALE,
    MAX_PICTURES,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    GenerationParams,
)
from app.services.views import BatchView, GenerationView, HealthView, ModelView
from app.services.votes import MAX_SHOWN, Ballot
from app.storage.records import VoteRecord

_MAX_PIXELS_A_SIDE = 8192
_Id = Annotated[str, Field(min_length=1, max_length=64)]


class GenerateQuery(BaseModel):
    """Fields of `/generate`; those that are left out take the catalogue's values for the model."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What to make; not only blanks.")
    model: str | None = Field(None, max_length=200, description="Bare name or set/name; see /models.")
    negative_prompt: str = Field("", max_length=MAX_PROMPT, description="What to keep out.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn by chance if left out.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Inference steps.")
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    eta: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="For DDIM.")
    width: int | None = Field(None, ge=8, le=_MAX_PIXELS_A_SIDE, description="Pixels.")
    height: int | None = Field(None, ge=8, le=_MAX_PIXELS_A_SIDE, description="Pixels.")
    scheduler: str | None = Field(None, max_length=40, description="Noise scheduler; see /models.")
    preview: bool = Field(True, description="Whether every step sends a preview.")

    def params(self) -> GenerationParams:
        """The same for the services."""
        values = self.model_dump(exclude={"scheduler", "n"})
        return GenerationParams(noise_scheduler=self.scheduler, **values)


class GenerateBody(GenerateQuery):
    """The same as a JSON object, with strict types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerationsBody(GenerateBody):
    """Fields of `POST /generations`."""

    n: int = Field(1, ge=1, le=MAX_PICTURES, description="Pictures, with seeds seed … seed+n−1.")


class VoteBody(BaseModel):
    """A vote; see the kinds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["thumb", "rating", "choice"]
    shown: list[_Id] = Field(min_length=1, max_length=MAX_SHOWN, description="What the voter saw, in order.")
    value: int | None = Field(None, ge=-1, le=5, description="thumb: -1 or 1; rating: 1 to 5.")
    chosen: str | None = Field(None, max_length=64, description="choice: a shown id, 'tie' or 'all_bad'.")

    def ballot(self) -> Ballot:
        """The same for the services."""
        return Ballot(kind=self.kind, shown=tuple(self.shown), value=self.value, chosen=self.chosen)


class WithdrawBody(BaseModel):
    """Which vote to take back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["thumb", "rating", "choice"]
    shown: list[_Id] = Field(min_length=1, max_length=MAX_SHOWN)


class Problem(BaseModel):
    """What is wrong."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people.")
    field: str | None = Field(None, description="The field that is wrong.")


class ProblemAnswer(BaseModel):
    """The body of every refusal."""

    error: Problem


def generation_json(view: GenerationView) -> dict[str, Any]:
    """A generation as `/generations` shows it."""
    error = None
    if view.error_code is not None:
        error = {"code": view.error_code, "message": view.error_message}
    return {
        "id": view.id,
        "batch_id": view.batch_id,
        "position": view.position,
        "state": view.state,
        "model": view.model,
        "model_id": view.model_id,
        "prompt": view.prompt,
        "negative_prompt": view.negative_prompt,
        "seed": view.seed,
        "steps": view.steps,
        "guidance_scale": view.guidance_scale,
        "eta": view.eta,
        "scheduler": view.noise_scheduler,
        "width": view.width,
        "height": view.height,
        "step": view.step,
        "progress": view.progress,
        "place": view.place,
        "seconds": view.seconds,
        "seconds_left": view.seconds_left,
        "image_url": view.image_url,
        "bytes": view.image_bytes,
        "notices": list(view.notices),
        "error": error,
        "vote": view.vote,
        "mine": view.mine,
        "created_at": view.created_at.isoformat(),
        "finished_at": None if view.finished_at is None else view.finished_at.isoformat(),
        "revision": view.revision,
        "dtype": view.dtype,
        "device": view.device,
        "alone": view.alone,
    }


def batch_json(batch: BatchView) -> dict[str, Any]:
    """The answer to `POST /generations`."""
    return {"batch_id": batch.id, "generations": [generation_json(view) for view in batch.generations]}


def vote_json(vote: VoteRecord) -> dict[str, Any]:
    """A stored vote."""
    return {
        "id": vote.id,
        "kind": vote.kind,
        "shown": list(vote.shown),
        "value": vote.value,
        "chosen": vote.chosen,
        "created_at": vote.created_at.isoformat(),
        "updated_at": vote.updated_at.isoformat(),
    }


def model_json(model: ModelView) -> dict[str, Any]:
    """A model as `/models` and `/health` show it."""
    defaults, limits = model.defaults, model.limits
    return {
        "id": model.id,
        "name": model.name,
        "label": model.label,
        "best_for": model.best_for,
        "description": model.description,
        "licence": model.licence,
        "demonstration": model.demonstration,
        "default": model.default,
        "state": model.state,
        "progress": round(model.progress, 3),
        "stage": model.stage,
        "error": model.error,
        "device": model.device,
        "dtype": model.dtype,
        "batch_size": model.batch_size,
        "step_seconds": round(model.step_seconds, 4),
        "memory_bytes": model.memory_bytes,
        "alone_bytes": model.alone_bytes,
        "shared_bytes": model.shared_bytes,
        "revision": model.revision,
        "precision_psnr": model.precision_psnr,
        "examples": list(model.examples),
        "defaults": {
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "eta": defaults.eta,
            "width": defaults.width,
            "height": defaults.height,
            "scheduler": defaults.noise_scheduler,
        },
        "limits": {
            "sizes": [list(size) for size in limits.sizes],
            "size_multiple": limits.size_multiple,
            "min_size": limits.min_size,
            "max_size": limits.max_size,
            "max_pixels": limits.max_pixels,
            "max_steps": limits.max_steps,
            "max_guidance_scale": limits.max_guidance_scale,
        },
    }


def health_json(health: HealthView) -> dict[str, Any]:
    """The answer of `/health`."""
    return {
        "status": health.status,
        "device": health.device,
        "models_loaded": list(health.models_loaded),
        "reasons": list(health.reasons),
        "devices": {device: _device_health(health, device) for device in health.device.split(",")},
        "models": {model.name: _model_health(model) for model in health.models},
        "queue": {"waiting": health.waiting, "running": health.running, "limit": health.queue_limit},
        "storage": "ok" if health.storage else "unavailable",
        "safety_checker": "on" if health.safety_checker else "off",
        "uptime_seconds": health.uptime_seconds,
        "version": health.version,
    }


def _device_health(health: HealthView, device: str) -> dict[str, Any]:
    # Before the engine is there, no model tells its device.
    here = [model for model in health.models if model.state == "ready" and model.device == device]
    return {
        "models": [model.name for model in here],
        "memory_bytes": health.memory_bytes.get(device, 0),
    }


def _model_health(model: ModelView) -> dict[str, Any]:
    keys = ("id", "state", "progress", "stage", "error", "device", "dtype", "batch_size", "step_seconds")
    shown = model_json(model)
    return {
        key: shown[key]
        for key in (*keys, "memory_bytes", "alone_bytes", "shared_bytes", "revision", "precision_psnr")
    }
