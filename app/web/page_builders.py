"""From what the services tell to what the templates show: words, addresses, choices. No I/O."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

from app.backends.base import ModelState
from app.engine import noise_schedulers
from app.errors import DarkroomError
from app.services.params import MAX_GUIDANCE_SCALE, MAX_PICTURES, MAX_STEPS
from app.services.views import BatchView, GenerationView, HealthView, ModelView
from app.web.page_contexts import (
    Again,
    Choice,
    FormView,
    ModelAction,
    ModelCard,
    PictureCard,
    RecentPrint,
    Stage,
    StatusPanel,
)

PictureState = Literal["waiting", "starting", "developing", "finishing", "done", "failed", "cancelled"]
# Fields of the form that have a place of their own for what is wrong with them.
_SHOWN_FIELDS = frozenset(
    ["prompt", "model", "negative_prompt", "n", "size", "steps", "guidance_scale", "seed", "scheduler"]
)
_BASIC_FIELDS = frozenset({"prompt", "model"})
_LONG_PROMPT = 120
_STATE_WORDS = {
    "waiting": "waiting for its turn",
    "loading": "loading",
    "ready": "ready",
    "unloading": "finishing its last pictures",
    "unloaded": "not loaded",
    "failed": "could not be loaded",
}
_ON_DEMAND = "loaded when it is asked for"
_LOAD = ModelAction(verb="load", label="Load")
_UNLOAD = ModelAction(verb="unload", label="Unload")
_RELOAD = ModelAction(verb="reload", label="Reload")
_ACTIONS: dict[ModelState, tuple[ModelAction, ...]] = {
    "waiting": (_UNLOAD,),
    "loading": (_UNLOAD,),
    "ready": (_UNLOAD, _RELOAD),
    "unloading": (_LOAD,),
    "unloaded": (_LOAD,),
    "failed": (
        ModelAction(verb="reload", label="Try again"),
        ModelAction(verb="unload", label="Leave it out"),
    ),
}
_HINTS = {
    "too_many_requests": "Wait a moment, or cancel one of yours.",
    "model_not_ready": "Your words are kept: choose another model, or send them again when it is ready.",
    "storage_unavailable": "Nothing was started. Try again in a moment.",
    "shutting_down": "Try again in a moment.",
}


def model_card(model: ModelView, *, selected: bool = False, may_change: bool = False) -> ModelCard:
    """A model as the form and the Models page show it.

    Args:
        model: The model.
        selected: Whether it is the present choice of the form.
        may_change: Whether the visitor may load and unload it.
    """
    return ModelCard(
        name=model.name,
        id=model.id,
        label=model.label,
        best_for=_lower(model.best_for),
        description=model.description,
        licence=model.licence,
        demonstration=model.demonstration,
        default=model.default,
        selected=selected,
        state=model.state,
        serves=model.serves,
        state_words=_ON_DEMAND if model.state == "unloaded" and model.serves else _STATE_WORDS[model.state],
        percent=round(100 * model.progress),
        stage=model.stage,
        error=model.error or "",
        sizes=", ".join(f"{width} × {height}" for width, height in model.limits.sizes),
        steps=model.defaults.steps,
        device=f"{model.device}, {model.dtype}" if model.device and model.dtype else model.device,
        pace=f"{duration(model.step_seconds * model.defaults.steps)} a picture" if model.step_seconds else "",
        memory=_memory(model),
        actions=_ACTIONS[model.state] if may_change else (),
    )


def _memory(model: ModelView) -> str:
    """'3.4 GB', '3.4 GB, 1.7 GB of it together with other models'."""
    if not model.memory_bytes:
        return ""
    if not model.shared_bytes:
        return memory_size(model.memory_bytes)
    shared = memory_size(model.shared_bytes)
    if not model.alone_bytes:
        return f"{shared}, all of it together with other models"
    return f"{memory_size(model.memory_bytes)}: {memory_size(model.alone_bytes)} alone, {shared} shared"


def models_poll(models: Sequence[ModelView]) -> int:
    """Seconds after which the list of models is worth another look; 0 for never."""
    return 1 if any(model.state in ("waiting", "loading", "unloading") for model in models) else 0


def form_view(
    models: Sequence[ModelView],
    values: Mapping[str, str],
    *,
    error: DarkroomError | None = None,
) -> FormView:
    """The form with `values` as typed; what is missing gets the chosen model's defaults.

    Args:
        models: All models, in the order of the catalogue.
        values: Fields as sent, possibly wrong.
        error: What is wrong with them.
    """
    chosen = _chosen(models, values.get("model", ""))
    defaults, limits = chosen.defaults, chosen.limits
    errors, problem = _errors(error)
    size = values.get("size") or f"{defaults.width}x{defaults.height}"
    sizes = [f"{width}x{height}" for width, height in limits.sizes]
    scheduler = values.get("scheduler") or defaults.noise_scheduler
    count = values.get("n") or "1"
    return FormView(
        prompt=values.get("example") or values.get("prompt", ""),
        negative_prompt=values.get("negative_prompt", ""),
        steps=values.get("steps") or str(defaults.steps),
        guidance_scale=values.get("guidance_scale") or f"{defaults.guidance_scale:g}",
        seed=values.get("seed", ""),
        max_steps=min(MAX_STEPS, limits.max_steps),
        max_guidance_scale=f"{min(MAX_GUIDANCE_SCALE, limits.max_guidance_scale):g}",
        models=tuple(model_card(model, selected=model is chosen) for model in models),
        model=model_card(chosen, selected=True),
        sizes=tuple(
            Choice(value=text, label=text.replace("x", " × "), selected=text == size) for text in sizes
        ),
        noise_schedulers=tuple(
            Choice(value=name, label=label, selected=name == scheduler)
            for name, label in noise_schedulers.NAMES.items()
        ),
        counts=tuple(
            Choice(value=str(n), label=str(n), selected=str(n) == count) for n in range(1, MAX_PICTURES + 1)
        ),
        examples=chosen.examples[:6],
        placeholder=max(chosen.examples[:6], key=len, default=""),
        errors=errors,
        problem=problem,
        hint=hint_for(error),
        open=any(name not in _BASIC_FIELDS for name in errors) or values.get("open") == "1",
    )


def hint_for(error: DarkroomError | None) -> str:
    """What to do about an error, in a sentence; may be empty."""
    if error is None:
        return ""
    hint = _HINTS.get(error.code, "")
    if error.code == "too_many_requests" and error.retry_after:
        return f"{hint} A place should be free in about {error.retry_after:.0f} s."
    return hint


def sentence(text: str) -> str:
    """A message as a sentence: a capital first, a full stop last."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")


def stage_view(batch: BatchView, models: Sequence[ModelView], *, streamed: bool = False) -> Stage:
    """A batch with all its pictures.

    Args:
        batch: The batch.
        models: All models, for labels.
        streamed: Whether final pictures travel in the message itself, so that nothing flickers.
    """
    first = batch.generations[0]
    count = len(batch.generations)
    return Stage(
        batch=batch.id,
        prompt=first.prompt,
        long=len(first.prompt) > _LONG_PROMPT,
        negative_prompt=first.negative_prompt,
        recipe=_recipe(first, models),
        summary=_summary(batch),
        count=count,
        pictures=tuple(picture_card(view, count, models, streamed=streamed) for view in batch.generations),
        live=not batch.final,
        again=_again(first, seed=None, n=count) if count > 1 else Again(fields=()),
    )


def picture_card(
    view: GenerationView, of: int, models: Sequence[ModelView] = (), *, streamed: bool = False
) -> PictureCard:
    """One picture in its present state.

    Args:
        view: The picture.
        of: How many pictures its batch has.
        models: All models, to tell one that still loads.
        streamed: As for `stage_view`.
    """
    state = _state(view)
    return PictureCard(
        id=view.id,
        number=view.position + 1,
        of=of,
        state=state,
        alt=_alt(view, state),
        width=view.width,
        height=view.height,
        picture=_address(view, streamed=streamed),
        download=(view.image_url or _data_uri(view.image, "png")) if state == "done" else "",
        download_name=view.download_name,
        step=view.step,
        total_steps=view.steps,
        percent=100 if view.state == "done" else round(view.progress),
        place=_place(view, models) if state == "waiting" else "",
        time_left=_time_left(view.seconds_left),
        seed=str(view.seed),
        time=duration(view.seconds) if view.seconds is not None else "",
        file_size=file_size(view.image_bytes),
        made_with=_made_with(view) if state == "done" else "",
        notices=view.notices,
        error=_why(view),
        vote=cast(Literal[-1, 0, 1], view.vote or 0),
        mine=view.mine,
        keys=of == 1,
        again=_again(view, seed=None, n=1),
        retry=_again(view, seed=view.seed, n=1),
    )


def recent_prints(views: Sequence[GenerationView], shown_batch: str | None) -> tuple[RecentPrint, ...]:
    """The drying line: newest pictures, without those on the stage."""
    return tuple(
        RecentPrint(
            href=f"/studio/{view.batch_id}",
            picture=view.image_url,
            alt=view.prompt,
            width=view.width,
            height=view.height,
        )
        for view in views
        if view.image_url and view.batch_id != shown_batch
    )


def status_panel(health: HealthView) -> StatusPanel:
    """What a visitor should know about the service; nothing when all is well."""
    models = [model_card(model) for model in health.models]
    loading = tuple(model for model in models if model.state in ("waiting", "loading"))
    failed = tuple(model for model in models if model.state == "failed")
    nothing = StatusPanel(state="ready", title="", text="", models=(), poll=0)
    if health.status == "starting":
        return StatusPanel(
            state="starting",
            title="Warming up",
            text="The models are being loaded. You can ask for a picture already: it waits for its model.",
            models=loading + failed,
            poll=1,
        )
    if health.status == "unhealthy":
        # Models that failed are listed with their reasons; the others are said here.
        others = [r for r in health.reasons if not (failed and "could not be loaded" in r)]
        reasons = " ".join(others) or "No model can be used."
        return replace(
            nothing, state="failed", title="Darkroom cannot develop now", text=reasons, models=failed, poll=5
        )
    if loading:
        return StatusPanel(
            state="starting",
            title="More models are on their way",
            text="You can use those that are ready.",
            models=loading + failed,
            poll=2,
        )
    if failed:
        return StatusPanel(
            state="degraded",
            title="Not every model could be loaded",
            text="The others work as usual.",
            models=failed,
            poll=0,
        )
    if health.waiting:
        crowd = f"{health.waiting} picture{'s' if health.waiting != 1 else ''}"
        return replace(
            nothing,
            state="busy",
            title="Busy right now",
            poll=5,
            text=f"{crowd} wait in the queue. Yours will join them and start as places come free.",
        )
    return nothing


def duration(seconds: float) -> str:
    """'0.8 s', '12 s', '3 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def file_size(size: int | None) -> str:
    """'31 kB', '1.2 MB'; empty if unknown."""
    if size is None:
        return ""
    if size < 999_500:
        return f"{max(1, round(size / 1000))} kB"
    return f"{size / 1e6:.1f} MB"


def memory_size(size: int) -> str:
    """'850 kB', '62 MB', '3.4 GB'."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= 0.9995 * unit:
            return f"{size / unit:.1f} {name}" if size < 99.5 * unit else f"{size / unit:.0f} {name}"
    return f"{max(1, round(size / 1000))} kB"


def _chosen(models: Sequence[ModelView], name: str) -> ModelView:
    for model in models:
        if name in (model.name, model.id):
            return model
    return next((model for model in models if model.default), models[0])


def _errors(error: DarkroomError | None) -> tuple[dict[str, str], str]:
    """What is wrong, by the form's field, or with the whole."""
    if error is None:
        return {}, ""
    field = "size" if error.field in ("width", "height") else error.field
    if field not in _SHOWN_FIELDS or error.status != 400:
        return {}, sentence(error.message.removeprefix("model: "))
    return {field or "": sentence(error.message.removeprefix(f"{error.field}:"))}, ""


def _state(view: GenerationView) -> PictureState:
    if view.state != "running":
        return view.state
    if view.step == 0:
        return "starting"
    return "developing" if view.step < view.steps else "finishing"


def _alt(view: GenerationView, state: PictureState) -> str:
    prompt = view.prompt if len(view.prompt) <= 160 else view.prompt[:160] + "…"
    if state == "done":
        return f"Picture made from the words: {prompt}"
    if state in ("failed", "cancelled"):
        return "No picture"
    return f"Preview of a picture that develops from the words: {prompt}" if view.preview else "Blank paper"


def _address(view: GenerationView, *, streamed: bool) -> str:
    if view.state != "done":
        return _data_uri(view.preview, "jpeg")
    if view.image is not None and (streamed or view.image_url is None):
        return _data_uri(view.image, "png")
    return view.image_url or ""


def _data_uri(data: bytes | None, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if data else ""


def _why(view: GenerationView) -> str:
    text = sentence(view.error_message or "")
    return "" if view.state == "cancelled" and text == "Cancelled." else text


def _lower(text: str) -> str:
    """To follow other words in a sentence: 'Small pictures' as 'small pictures', 'PNG' as it is."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _place(view: GenerationView, models: Sequence[ModelView]) -> str:
    if any(model.id == view.model_id and model.state != "ready" for model in models):
        return "waits for its model"
    if view.place is None:
        return "it starts soon"
    return "next in line" if view.place == 1 else f"place {view.place} in line"


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return "less than a second left"
    return f"about {seconds:.0f} s left" if seconds < 99.5 else f"about {duration(seconds)} left"


def _made_with(view: GenerationView) -> str:
    if not view.dtype:
        return ""
    return f"Made in {view.dtype} on {view.device or 'this machine'}"


def _again(view: GenerationView, *, seed: int | None, n: int) -> Again:
    fields = {
        "prompt": view.prompt,
        "negative_prompt": view.negative_prompt,
        "model": view.model_id,
        "steps": str(view.steps),
        "guidance_scale": f"{view.guidance_scale:g}",
        "eta": f"{view.eta:g}",
        "size": f"{view.width}x{view.height}",
        "scheduler": view.noise_scheduler,
        "n": str(n),
        "seed": "" if seed is None else str(seed),
    }
    return Again(fields=tuple((name, value) for name, value in fields.items() if value))


def _recipe(view: GenerationView, models: Sequence[ModelView]) -> str:
    label = next((model.label for model in models if model.id == view.model_id), view.model)
    parts = [
        label,
        f"{view.width} × {view.height}",
        f"{view.steps} step{'s' if view.steps != 1 else ''}",
        f"guidance {view.guidance_scale:g}",
        noise_schedulers.NAMES.get(view.noise_scheduler, view.noise_scheduler),
    ]
    return " · ".join(parts)


def _summary(batch: BatchView) -> str:
    states = [view.state for view in batch.generations]
    done, count = states.count("done"), len(states)
    if count == 1:
        words = {"waiting": "Waiting", "running": "Developing", "done": "Finished"}
        return words.get(states[0], states[0].capitalize())
    failed, cancelled = states.count("failed"), states.count("cancelled")
    text = f"{done} of {count} finished"
    if failed:
        text += f", {failed} failed"
    if cancelled:
        text += f", {cancelled} cancelled"
    return text
