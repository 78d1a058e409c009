"""The pages: HTML for people, built from the same services as the API, with htmx and no script of our own.

Every answer to htmx consists of ``<hx-partial>`` elements that say themselves where they belong; words about
what went wrong go where the asking element points (`hx-target`). The same routes work for browsers without
scripts: they answer with a redirect, or with a whole page.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from typing import Any

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.errors import DarkroomError, InvalidRequest, NotFound
from app.resources import static_dir, templates_dir
from app.services.views import BatchView, GenerationView
from app.services.votes import Ballot
from app.web.dependencies import client_of, is_admin, services_of
from app.web.page_builders import (
    form_view,
    hint_for,
    model_card,
    models_poll,
    picture_card,
    recent_prints,
    sentence,
    stage_view,
    status_panel,
)
from app.web.page_contexts import (
    CreatedFragment,
    FormFragment,
    ModelCard,
    ModelsChangedFragment,
    ModelsFragment,
    ModelsPage,
    OfflineFragment,
    PictureFragment,
    ProblemFragment,
    ProblemPage,
    StatusFragment,
    StreamFragment,
    StudioPage,
)
from app.web.page_forms import FIELDS, parse_form, read_form, read_params
from app.web.sse import message, stream

router = APIRouter(include_in_schema=False)

# Silence for longer than the watchdog's 12 s (darkroom.css) means a lost connection; so speak more often.
_PULSE_SECONDS = 5.0
# Several pictures of a batch change together: one message for all of them.
_GATHER_SECONDS = 0.03
_REFRESH_SECONDS = 2
# What another choice of model leaves as it is.
_KEPT_FIELDS = ("prompt", "negative_prompt", "model", "seed", "n")
_HEADINGS = {
    400: "That did not work",
    403: "That is not yours to change",
    404: "Nothing hangs here",
    405: "That is not how to ask",
    429: "Too much at once",
    503: "Not right now",
}
_HINTS = {
    404: "The address may be mistyped, or what was there is gone.",
    429: "Wait a moment, then try again.",
    503: "Try again in a moment.",
}


@cache
def asset(path: str) -> str:
    """Address of a static file; it changes with the content, so that no old file meets a new page."""
    content = (static_dir() / path).read_bytes()
    return f"/static/{path}?v={hashlib.sha256(content).hexdigest()[:12]}"


@cache
def environment() -> Environment:
    """The templates: everything is escaped, and a name that does not exist is an error."""
    env = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["asset"] = asset
    return env


Context = (
    StudioPage
    | ModelsPage
    | ModelsFragment
    | ModelsChangedFragment
    | ProblemPage
    | CreatedFragment
    | StreamFragment
    | FormFragment
    | PictureFragment
    | StatusFragment
    | ProblemFragment
    | OfflineFragment
)
TEMPLATES: dict[type[Any], str] = {
    StudioPage: "studio.html",
    ModelsPage: "models.html",
    ModelsFragment: "partials/models.html",
    ModelsChangedFragment: "partials/models_answer.html",
    ProblemPage: "problem.html",
    CreatedFragment: "partials/created.html",
    StreamFragment: "partials/stream.html",
    FormFragment: "partials/form_answer.html",
    PictureFragment: "partials/picture_answer.html",
    StatusFragment: "partials/status.html",
    ProblemFragment: "partials/problem.html",
    OfflineFragment: "partials/offline.html",
}


def render(context: Context) -> str:
    """The template of a context, filled with its fields and nothing else."""
    template = environment().get_template(TEMPLATES[type(context)])
    return template.render({f.name: getattr(context, f.name) for f in fields(context)})


def _html(context: Context, status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    base = {"Cache-Control": "no-cache", "Vary": "Accept, HX-Request"}
    return HTMLResponse(render(context), status, {**base, **(headers or {})})


def _is_htmx(request: Request) -> bool:
    return (
        request.headers.get("hx-request") == "true"
        and request.headers.get("hx-history-restore-request") != "true"
    )


# ---------------------------------------------------------------------- pages


async def home(request: Request) -> Response:
    """The Studio: the visitor's running pictures if there are any; `?prompt=…` fills the form."""
    values = _prefill(request)
    batch = None
    if not values:
        with suppress(DarkroomError):  # Without a database the page comes all the same, and says so.
            batch = await services_of(request).generations.newest_unfinished(client_of(request).id)
    return await _studio(request, batch, values)


async def models_page(request: Request) -> Response:
    """What there is to generate with."""
    panel = status_panel(services_of(request).status.health())
    cards, poll = _model_list(request)
    return _html(
        ModelsPage(
            title="Models · Darkroom",
            section="models",
            models=cards,
            poll=poll,
            status=panel,
            refresh=_REFRESH_SECONDS if panel.poll or poll else 0,
        )
    )


def _model_list(request: Request) -> tuple[tuple[ModelCard, ...], int]:
    """The models with what this visitor may do with them, and when to look again."""
    models, may_change = services_of(request).status.models(), is_admin(request)
    return tuple(model_card(model, may_change=may_change) for model in models), models_poll(models)


@router.get("/models/list")
async def models_list(request: Request) -> Response:
    """The list of models; it stops asking when nothing changes any more."""
    cards, poll = _model_list(request)
    return _html(ModelsFragment(models=cards, poll=poll))


async def models_changed(request: Request) -> Response:
    """The answer to a button of the list."""
    if not _is_htmx(request):
        return RedirectResponse("/models", 303)
    cards, poll = _model_list(request)
    panel = status_panel(services_of(request).status.health())
    return _html(ModelsChangedFragment(models=cards, poll=poll, status=panel), 202)


async def _studio(
    request: Request,
    batch: BatchView | None,
    values: dict[str, str],
    error: DarkroomError | None = None,
) -> Response:
    services = services_of(request)
    models = services.status.models()
    panel = status_panel(services.status.health())
    if batch is not None and not values:
        values = _values_of(batch.generations[0], len(batch.generations))
    recent: Sequence[GenerationView] = ()
    with suppress(DarkroomError):
        recent = await services.generations.recent(client_of(request).id)
    live = batch is not None and not batch.final
    context = StudioPage(
        title=_title(batch),
        section="studio",
        form=form_view(models, values, error=error),
        status=panel,
        stage=stage_view(batch, models) if batch is not None else None,
        recent=recent_prints(recent, batch.id if batch is not None else None),
        refresh=_REFRESH_SECONDS if live or panel.poll else 0,
    )
    return _html(context, error.status if error else 200, _retry_after(error))


def _title(batch: BatchView | None) -> str:
    if batch is None:
        return "Darkroom"
    prompt = batch.generations[0].prompt
    return f"{prompt[:60]}{'…' if len(prompt) > 60 else ''} · Darkroom"


def _prefill(request: Request) -> dict[str, str]:
    try:
        values = parse_form(request.url.query.encode())
    except InvalidRequest:
        return {}
    return {name: values[name][:2000] for name in FIELDS - {"example", "eta"} if values.get(name)}


def _values_of(view: GenerationView, count: int) -> dict[str, str]:
    """The form as it was when this was asked for; the seed stays open, since the next should be new."""
    return {
        "prompt": view.prompt,
        "negative_prompt": view.negative_prompt,
        "model": view.model_id,
        "steps": str(view.steps),
        "guidance_scale": f"{view.guidance_scale:g}",
        "size": f"{view.width}x{view.height}",
        "scheduler": view.noise_scheduler,
        "n": str(count),
    }


# ---------------------------------------------------------------------- forms


async def develop(request: Request) -> Response:
    """Answer `POST /generations` sent as a form: start what it asks for."""
    values: dict[str, str] = {}
    try:
        values = await read_form(request)
        params, n = read_params(values)
        batch = await services_of(request).generations.create(params, client_of(request), n=n)
    except DarkroomError as error:
        return await _refused(request, error, values)
    return await created(request, batch, values)


async def created(request: Request, batch: BatchView, values: dict[str, str] | None = None) -> Response:
    """The answer to a form that started `batch`."""
    address = f"/studio/{batch.id}"
    if not _is_htmx(request):
        return RedirectResponse(address, 303)
    models = services_of(request).status.models()
    first = batch.generations[0]
    shown = _values_of(first, len(batch.generations))
    if values and values.get("seed") and not _from_again(request):
        shown["seed"] = values["seed"]
    context = CreatedFragment(
        title=_title(batch), form=form_view(models, shown), stage=stage_view(batch, models)
    )
    return _html(context, headers={"HX-Push-Url": address})


async def _refused(request: Request, error: DarkroomError, values: dict[str, str]) -> Response:
    if not _is_htmx(request):
        return await _studio(request, None, values, error)
    if _from_again(request):
        return await problem(request, error)
    models = services_of(request).status.models()
    return _html(FormFragment(form=form_view(models, values, error=error)), error.status, _retry_after(error))


def _from_again(request: Request) -> bool:
    """Whether a button below a picture asks, not the form with the prompt."""
    return request.headers.get("hx-source", "form#prompt-form") != "form#prompt-form"


@router.get("/studio/form")
async def form_for_model(request: Request) -> Response:
    """The form for another model: texts stay, numbers become that model's defaults."""
    values = parse_form(request.url.query.encode())
    kept = {name: values[name] for name in _KEPT_FIELDS if name in values}
    return _html(FormFragment(form=form_view(services_of(request).status.models(), kept)))


@router.post("/studio/pictures/{generation_id}/cancel")
async def cancel(request: Request, generation_id: str) -> Response:
    """Stop a picture."""
    try:
        view = await services_of(request).generations.cancel(generation_id, client_of(request).id)
    except DarkroomError as error:
        return await problem(request, error)
    return await changed(request, view)


@router.post("/studio/pictures/{generation_id}/vote")
async def vote(request: Request, generation_id: str) -> Response:
    """Vote on a picture, or change the vote; it is committed when the answer comes."""
    services, viewer = services_of(request), client_of(request).id
    try:
        value = _thumb((await read_form(request)).get("value", ""))
        await services.votes.cast(
            Ballot(kind="thumb", shown=(generation_id,), value=value, page="studio"), viewer
        )
        view = await services.generations.get(generation_id, viewer)
    except DarkroomError as error:
        return await problem(request, error)
    return await changed(request, view)


def _thumb(text: str) -> int:
    if text not in ("1", "-1"):
        raise InvalidRequest("value: must be 1 or -1", field="value")
    return int(text)


async def changed(request: Request, view: GenerationView) -> Response:
    """The answer to a vote or a cancel: the picture as it is now."""
    if not _is_htmx(request):
        return RedirectResponse(f"/studio/{view.batch_id}", 303)
    services = services_of(request)
    batch = await services.generations.batch(view.batch_id, client_of(request).id)
    now = next((g for g in batch.generations if g.id == view.id), view)
    return _html(PictureFragment(picture=picture_card(now, len(batch.generations), services.status.models())))


async def problem(request: Request, error: DarkroomError) -> Response:
    """What went wrong: a fragment for htmx, a page for everyone else."""
    headers = _retry_after(error)
    if _is_htmx(request):
        fragment = ProblemFragment(problem=sentence(error.message), hint=hint_for(error))
        return _html(fragment, error.status, headers)
    context = ProblemPage(
        title=f"{error.status} · Darkroom",
        section="",
        status_code=error.status,
        heading=_HEADINGS.get(error.status, "Something went wrong"),
        text=sentence(error.message),
        hint=_HINTS.get(error.status, ""),
        refresh=0,
    )
    return _html(context, error.status, headers)


def _retry_after(error: DarkroomError | None) -> dict[str, str]:
    if error is None or error.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, round(error.retry_after)))}


# ---------------------------------------------------------------------- fragments and the stream


@router.get("/studio/status")
async def status(request: Request) -> Response:
    """The status panel; it stops asking when there is nothing more to say."""
    return _html(StatusFragment(status=status_panel(services_of(request).status.health())))


@router.get("/studio/offline")
async def offline(request: Request) -> Response:
    """Words for when the server cannot be reached; the browser keeps them for that time."""
    return HTMLResponse(render(OfflineFragment()), headers={"Cache-Control": "max-age=86400"})


@router.get("/studio/batches/{batch_id}/events")
async def events(request: Request, batch_id: str) -> Response:
    """The pictures of a batch as HTML partials, at every step, until all are final.

    Leaving does not cancel. Who comes back gets the present state first. A batch that does not exist (any
    more) ends at once, since an error would make the page ask for ever.
    """
    return stream(request, _messages(request, batch_id, client_of(request).id))


async def _messages(request: Request, batch_id: str, viewer: str) -> AsyncIterator[bytes]:
    services = services_of(request)
    states = services.generations.watch_batch(batch_id, viewer)
    sent: dict[str, tuple[object, ...]] = {}
    waiting: asyncio.Task[BatchView | None] | None = None
    batch: BatchView | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(states))
            await asyncio.wait({waiting}, timeout=_PULSE_SECONDS)
            if waiting.done():
                newest, waiting = waiting.result(), None
                if newest is None:
                    break
                batch = newest
            if batch is not None:
                yield _message(request, batch, sent)
                await asyncio.sleep(0 if batch.final else _GATHER_SECONDS)
    except NotFound:
        pass
    except DarkroomError:
        return  # The database does not answer: without `done`, htmx asks again after a pause.
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await states.aclose()  # type: ignore[attr-defined]
    yield message("", event="done")


async def _next(states: AsyncIterator[BatchView]) -> BatchView | None:
    return await anext(states, None)


def _message(request: Request, batch: BatchView, sent: dict[str, tuple[object, ...]]) -> bytes:
    """The pictures that changed since the last message; without any it still tells that the line is alive."""
    new = []
    for view in batch.generations:
        state = (view.state, view.step, view.place, id(view.preview), view.notices, view.image_url, view.vote)
        if sent.get(view.id) != state:
            sent[view.id] = state
            new.append(view)
    models = services_of(request).status.models()
    cards = tuple(picture_card(view, len(batch.generations), models, streamed=True) for view in new)
    html = render(
        StreamFragment(
            stage=replace(stage_view(batch, models), pictures=cards),
            pulse=not batch.final,
        )
    )
    steps = "-".join(str(view.step) for view in batch.generations)
    return message(re.sub(r"\s*\n\s*", "\n", html).strip(), id_=f"{batch.id}:{steps}")


# Last, so that the fixed addresses above win.
@router.get("/studio/{batch_id}")
async def batch_page(request: Request, batch_id: str) -> Response:
    """The Studio with one batch on the stage."""
    try:
        batch = await services_of(request).generations.batch(batch_id, client_of(request).id)
    except DarkroomError as error:
        return await problem(request, error)
    return await _studio(request, batch, {})
