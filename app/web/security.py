"""Who may talk to this server, how much they may send, and the headers that keep pages safe.

All pure ASGI: nothing here buffers an answer, so streams stay streams.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DarkroomError, Forbidden, InvalidRequest
from app.services.clients import Client, ClientCookies

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# RapiDoc sets styles from its script; it runs nothing inline.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAX_BODY = 64 * 1024
BODY_SECONDS = 10.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class BodyTooLarge(InvalidRequest):
    """More than a request may carry."""

    code = "too_large"
    status = 413


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    code = "too_slow"
    status = 408


class SecurityHeaders:
    """Adds the policy headers to every answer, and the voter's cookie where a new voter was met.

    Args:
        app: The application.
        cookies: Writes the cookie.
    """

    def __init__(self, app: ASGIApp, cookies: ClientCookies) -> None:
        self._app = app
        self._cookies = cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with more headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                docs = scope["path"] == "/docs"
                headers.setdefault("Content-Security-Policy", DOCS_POLICY if docs else PAGE_POLICY)
                client = state.get("client")
                if isinstance(client, Client) and not client.known:
                    secure = scope.get("scheme") == "https"
                    headers.append("Set-Cookie", self._cookies.write(client, secure=secure))
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostAndOrigin:
    """Refuses foreign hosts (DNS rebinding) and foreign origins (cross-site requests).

    A host is ours if it is loopback, the address that the server is bound to or was reached by, or allowed by
    settings. A request that changes state or costs work must not come from a foreign or null `Origin`, nor
    with `Sec-Fetch-Site: cross-site`; programs send neither header.

    Args:
        app: The application.
        bound_host: The address that the server is bound to.
        allowed_hosts: Further names, `*.example.org` for all below, `*` for every host.
    """

    def __init__(self, app: ASGIApp, bound_host: str, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._allowed = {name.strip().lower().rstrip(".") for name in allowed_hosts if name.strip()}
        self._allowed.update(_LOOPBACK)
        if not _is_unspecified(bound_host):
            self._allowed.add(bound_host.lower().strip("[]"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(refusal, scope, receive, send)

    def _refusal(self, scope: Scope) -> DarkroomError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = _host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None or not self._is_ours(host, scope):
            return Forbidden(
                "Host: this server does not answer to that name; its operator can allow it "
                "with DARKROOM_ALLOWED_HOSTS",
                field="Host",
            )
        if not _costs(scope):
            return None
        if headers.get("sec-fetch-site", "").lower() == "cross-site":
            return Forbidden("Sec-Fetch-Site: requests from other sites are refused", field="Sec-Fetch-Site")
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, hosts[0]):
            return Forbidden("Origin: requests from other origins are refused", field="Origin")
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        if host in self._allowed or "*" in self._allowed:
            return True
        if any(name.startswith("*.") and host.endswith(name[1:]) for name in self._allowed):
            return True
        # The address that the connection came in on. Only as a number: no name can be rebound to it.
        server = scope.get("server")
        return server is not None and server[0] == host and _is_address(host)


class BodyLimit:
    """Refuses a body above the limit or too slow to come, declared or in chunks, before anyone parses it.

    Args:
        app: The application.
        max_bytes: The limit.
        seconds: How long a body may take.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass on or refuse."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = BodyTooSlow(f"body: must arrive within {self._seconds:g} s", field="body")
            await _refuse(error, scope, receive, send, close=True)
            return
        except BodyTooLarge as error:
            await _refuse(error, scope, receive, send, close=True)
            return
        if body is None:  # The client left.
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and (len(length) > 12 or int(length) > self._max_bytes):
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"body: must have at most {self._max_bytes:,} bytes", field="body")


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def receive_again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _refuse(
    error: DarkroomError, scope: Scope, receive: Receive, send: Send, *, close: bool = False
) -> None:
    # Here, because `errors` needs the pages, and they need the application.
    from app.web.errors import error_json

    response = error_json(error, scope["path"])
    if close:
        # What follows on this connection is the rest of that body.
        response.headers["Connection"] = "close"
    await response(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _costs(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] not in _SAFE_METHODS or path == "/generate" or path.endswith("/events")


def _host_of(value: str) -> str | None:
    """Host name or address without its port, in lower case; None if it is neither."""
    try:
        parsed = urlsplit(f"//{value}")
        _ = parsed.port
    except ValueError:
        return None
    if parsed.hostname is None or parsed.netloc != value or "@" in value or parsed.path:
        return None
    return parsed.hostname.rstrip(".")


def _same_origin(origin: str, host: str) -> bool:
    """Whether a page of this server sent the request; the scheme is left to the proxy that ends TLS."""
    try:
        parsed = urlsplit(origin)
    except ValueError:
        return False
    return parsed.scheme in ("http", "https") and parsed.netloc.lower() == host.lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    return host == "" or (
        _is_address(host.strip("[]")) and ipaddress.ip_address(host.strip("[]")).is_unspecified
    )
