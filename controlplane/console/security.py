"""Who may ask, and what every answer says to browsers.

On loopback no token is needed, but the ``Host`` header must name this machine: otherwise a web page
that the operator happens to visit could read the API through a rebound DNS name. Everywhere else a
token is demanded: as ``Authorization: Bearer …`` by programs, or exchanged once for a session cookie
by the console (a browser cannot put a header on an event stream). Tokens and session ids are
compared in constant time, sessions are bounded and expire.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.exceptions import (
    NotAuthorizedException,
    PermissionDeniedException,
    TooManyRequestsException,
)

from controlplane.console.address import is_loopback
from controlplane.console.limits import Attempts
from events.errors import Usage

COOKIE = "isthmus_session"
SESSION_S = 12 * 3600
SESSIONS_MAX = 256
TOKEN_MIN = 16
LOGINS_FAILED_MAX, BEARERS_FAILED_MAX = 10, 60
"""Wrong tokens a minute from one address."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def check_exposure(host: str, token: str) -> None:
    """Raises Usage(usage) when the address is reachable from outside and no good token is set."""
    if token and len(token) < TOKEN_MIN:
        raise Usage("usage", f"the console's token has {len(token)} characters; {TOKEN_MIN} is the least")
    if not is_loopback(host) and not token:
        raise Usage(
            "usage",
            f"the console on {host} is reachable from other machines and demands a token: "
            f"set ISTHMUS_HTTP_TOKEN (at least {TOKEN_MIN} characters), or listen on 127.0.0.1",
        )


class Authenticator:
    """Decides about each request. ``token`` is empty when none is demanded."""

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token.encode()
        self._clock = clock
        self._sessions: dict[bytes, float] = {}
        self._logins = Attempts(LOGINS_FAILED_MAX, clock=clock)
        self._bearers = Attempts(BEARERS_FAILED_MAX, clock=clock)

    @property
    def token_required(self) -> bool:
        return bool(self._token)

    def accepts_token(self, token: str) -> bool:
        """Whether it is the token."""
        return bool(self._token) and hmac.compare_digest(_bytes(token), self._token)

    def open_session_for(self, token: str, caller: str = "") -> Cookie | None:
        """A cookie that lets its browser in until it expires or this controller ends; None when none is needed.

        Raises NotAuthorizedException for a wrong token, and TooManyRequestsException for any after too many.
        """
        if not self._token:
            return None
        _check_attempts(self._logins, caller)
        if not self.accepts_token(token):
            self._logins.failed(caller)
            raise NotAuthorizedException("that is not the token")
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        self._sessions[session.encode()] = self._clock() + SESSION_S
        return Cookie(
            COOKIE, value=session, httponly=True, samesite="strict", path="/", max_age=SESSION_S, secure=False
        )

    def allows(self, authorization: str, session: str, caller: str = "") -> bool:
        """Whether a request with these credentials is let in.

        Others' guesses lock nobody out here: a program with the right token goes on behind the same proxy.
        Raises TooManyRequestsException for a wrong token after too many.
        """
        if not self._token:
            return True
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            if self.accepts_token(token.strip()):
                return True
            _check_attempts(self._bearers, caller)
            self._bearers.failed(caller)
        given = _bytes(session)
        expires = next((at for known, at in self._sessions.items() if hmac.compare_digest(known, given)), 0.0)
        return expires > self._clock()

    def check(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Raises what becomes a 401, a 403 (the Host header) or a 429 (too many wrong tokens)."""
        self.check_host(connection.headers.get("host", ""))
        authorization, session = connection.headers.get("authorization", ""), connection.cookies.get(COOKIE, "")
        if not self.allows(authorization, session, caller_of(connection)):
            raise NotAuthorizedException("a token is needed: Authorization: Bearer …")

    def check_host(self, host: str) -> None:
        """Without a token only this machine's own names are accepted. Raises PermissionDeniedException."""
        if self._token:
            return
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if not is_loopback(name.strip("[]").lower()):
            raise PermissionDeniedException(
                "this console answers on loopback only; the Host header names another"
            )


def caller_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The address that a request came from; empty when it is not known."""
    return connection.client.host if connection.client is not None else ""


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _check_attempts(attempts: Attempts, caller: str) -> None:
    wait_s = attempts.wait_s(caller)
    if wait_s > 0:
        raise TooManyRequestsException(
            f"too many wrong tokens from this address; try again in {wait_s:.0f} s",
            headers={"Retry-After": str(math.ceil(wait_s))},
        )
