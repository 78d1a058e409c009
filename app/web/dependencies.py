"""What the routes share: the services, the templates' friends, and who asks.

The pages plug in here. `app.web.pages` offers:

- `router`: an `APIRouter` with the pages' own routes (the HTML streams, fragments, other pages);
- `async home(request) -> Response`: the page that `GET /` gives a browser;
- `async created(request, batch) -> Response`: the fragment that answers `POST /generations` sent as a form;
- `async changed(request, view) -> Response`: the fragment that answers `DELETE /generations/{id}` (cancelled)
  and a form sent to `POST /votes`, with `HX-Request`;
- `async problem(request, error) -> Response`: the readable fragment, or page, for a `DarkroomError`; its
  status is `error.status`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from app.catalog.entry import Catalog
from app.services.clients import Client, ClientCookies
from app.services.generations import GenerationService
from app.services.status import StatusService
from app.services.votes import VoteService


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a route may use.

    Attributes:
        catalog: What can be generated with.
        generations: Create, watch, cancel.
        votes: Vote, withdraw.
        status: Health, models.
        cookies: The voter's cookie.
        ping_seconds: Pause between comments that keep an idle stream open.
        send_timeout_seconds: A stream ends when a reader takes nothing for so long.
    """

    catalog: Catalog
    generations: GenerationService
    votes: VoteService
    status: StatusService
    cookies: ClientCookies
    ping_seconds: float = 15.0
    send_timeout_seconds: float = 10.0


def services_of(request: Request) -> Services:
    """The services of the application that got `request`."""
    return cast(Services, request.app.state.services)


def client_of(request: Request) -> Client:
    """Who asks. A new client is remembered: the answer sets the cookie (`app.web.security` adds it)."""
    state = request.scope.setdefault("state", {})
    client = state.get("client")
    if client is None:
        address = request.client.host if request.client else "unknown"
        client = services_of(request).cookies.read(request.cookies.get("darkroom_voter"), address)
        state["client"] = client
    return cast(Client, client)


def wants_html(request: Request) -> bool:
    """Whether a page asks (htmx, or a browser that prefers HTML) rather than a program."""
    if request.headers.get("hx-request") == "true":
        return True
    accept = request.headers.get("accept", "")
    return "text/html" in accept and not accept.startswith("application/json")
