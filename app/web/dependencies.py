"""What the routes share: the services, the templates' friends, and who asks.

The pages plug in here. `app.web.pages` offers:

- `router`: an `APIRouter` with the pages' own routes (the HTML streams, fragments, other pages);
- `async home(request)`, `async models_page(request)`: what `GET /` and `GET /models` give a browser;
- `async develop(request)`: answers `POST /generations` sent as a form;
- `async changed(request, view)`: the fragment that answers `DELETE /generations/{id}` (cancelled);
- `async problem(request, error)`: the readable fragment, or page, for a `DarkroomError`; its status is
  `error.status`.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from app.catalog.entry import Catalog
from app.services.clients import COOKIE_NAME, Client, ClientCookies
from app.services.generations import GenerationService
from app.services.models import ModelService
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
        models: Load and unload models.
        cookies: The voter's cookie.
        ping_seconds: Pause between comments that keep an idle stream open.
        send_timeout_seconds: A stream ends when a reader takes nothing for so long.
        admin_token: Gives the rights of an admin; None if there is none.
    """

    catalog: Catalog
    generations: GenerationService
    votes: VoteService
    status: StatusService
    models: ModelService
    cookies: ClientCookies
    ping_seconds: float = 15.0
    send_timeout_seconds: float = 10.0
    admin_token: str | None = None


def services_of(request: Request) -> Services:
    """The services of the application that got `request`."""
    return cast(Services, request.app.state.services)


def client_of(request: Request) -> Client:
    """Who asks. A new client is remembered: the answer sets the cookie (`app.web.security` adds it)."""
    state = request.scope.setdefault("state", {})
    client = state.get("client")
    if client is None:
        address = request.client.host if request.client else "unknown"
        client = services_of(request).cookies.read(request.cookies.get(COOKIE_NAME), address)
        state["client"] = client
    return cast(Client, client)


def is_admin(request: Request) -> bool:
    """Whether the request carries the admin token or, where there is none, comes from this machine."""
    token = services_of(request).admin_token
    if token is None:
        return _is_local(request)
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), token.encode())


def _is_local(request: Request) -> bool:
    """Whether the connection is this machine's own, and no proxy's for somebody else."""
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def wants_html(request: Request) -> bool:
    """Whether a page asks (htmx, or a browser that prefers HTML) rather than a program."""
    if request.headers.get("hx-request") == "true":
        return True
    accept = request.headers.get("accept", "")
    return "text/html" in accept and not accept.startswith("application/json")
