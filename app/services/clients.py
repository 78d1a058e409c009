"""Who asks: an anonymous voter id in a signed cookie, and the address it came from."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from itsdangerous import BadSignature, Signer

COOKIE_NAME = "darkroom_voter"
COOKIE_SECONDS = 365 * 24 * 3600
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who asks.

    Attributes:
        id: Anonymous voter id.
        address: Address of the connection, for shares only; it is not stored.
        known: Whether the id came with the request. A new one has no share of its own yet: whoever sends no
            cookie is counted by address, so that dropping the cookie gains nothing.
    """

    id: str
    address: str
    known: bool

    @property
    def share_key(self) -> str:
        """What a client's share of the queue is counted by."""
        return f"voter:{self.id}" if self.known else f"address:{self.address}"


class ClientCookies:
    """Reads and writes the signed cookie.

    Args:
        secret: Key of the signature.
    """

    def __init__(self, secret: str) -> None:
        self._signer = Signer(secret, salt="darkroom.voter", digest_method=_sha256())

    def read(self, value: str | None, address: str) -> Client:
        """The client that sent `value`; a new one if there is none or its signature is wrong."""
        if value is not None and len(value) <= 200 and value.isascii():
            try:
                voter = self._signer.unsign(value).decode()
            except BadSignature:
                voter = ""
            if _ID.fullmatch(voter):
                return Client(voter, address, known=True)
        return Client(secrets.token_urlsafe(16), address, known=False)

    def write(self, client: Client, *, secure: bool) -> str:
        """The `Set-Cookie` header's value that makes `client` known next time."""
        value = self._signer.sign(client.id).decode()
        flags = "; Secure" if secure else ""
        return f"{COOKIE_NAME}={value}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax{flags}"


def _sha256() -> object:
    import hashlib

    return hashlib.sha256
