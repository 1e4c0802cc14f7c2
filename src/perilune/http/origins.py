"""Which web pages may use this server: its own, and those of the origins that were allowed by a flag.

A browser lets any site send requests to a server on its visitor's own machine, and only hides the answers. So requests
from other sites are refused here, before anything is computed for them. Programs send neither header and are not asked.

A site can also give its own name this machine's address and so look like ours. Where no API key protects a server on a
loopback address, it therefore answers to names of the loopback only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.errors import ConfigError
from perilune.http.errors import ForeignOriginError, error_response

_ORIGIN = re.compile(r"https?://[^/?#@\s]+")


def check_origins(origins: Sequence[str]) -> None:
    """Raises ConfigError for what is neither an origin nor "*"."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{origin!r} is no origin.", "It is a scheme and a host.", "Write https://chat.example, or *."
            )


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def guard(app: Starlette, allowed: Sequence[str], *, loopback_only: bool) -> None:
    """Lets pages of this server and of `allowed` origins in, and those of no other. Call it last: it comes first."""
    app.add_middleware(Origins, allowed=allowed, loopback_only=loopback_only)
    if allowed:
        app.add_middleware(CORSMiddleware, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])


class Origins:
    """Answers 403 to other sites' pages. `allowed`: origins as a browser writes them, or "*".

    `loopback_only`: also to requests under a name that is neither this machine's loopback nor of an allowed origin.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], loopback_only: bool) -> None:
        self._app, self._all = app, "*" in allowed
        self._origins = frozenset(origin.lower() for origin in allowed)
        self._names = frozenset(_name(urlsplit(origin).netloc) for origin in self._origins)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._all and (refusal := self._refusal(scope)) is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ForeignOriginError | None:
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._loopback_only and not _is_safe(_name(host)) and _name(host) not in self._names:
            return ForeignOriginError(
                f"This server does not go by the name {_name(host)[:100]!r}.",
                "It has no API key and listens on this machine only, so other names are refused.",
                "Use its address, or start it with --api-key, or with --allow-origin and the page's origin.",
            )
        same = origin is None or urlsplit(origin).netloc == host or origin in self._origins
        # Without an Origin (images, scripts) the browser still says where a request comes from. A link is no use.
        elsewhere = headers.get(b"sec-fetch-site") in ("cross-site", "same-site") and origin is None
        if same and not (elsewhere and headers.get(b"sec-fetch-mode") != "navigate"):
            return None
        return ForeignOriginError(
            "A page of another site asks.",
            f"It comes from {(origin or 'elsewhere')[:100]!r}; only this server's own page may.",
            "If it is yours, start the server with --allow-origin and its origin.",
        )


def _name(netloc: str) -> str:
    """`[::1]:8000` -> `::1`."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0]


def _is_safe(name: str) -> bool:
    """Nobody else can have pointed it here: the loopback's names, any address, and nothing at all, as in HTTP/1.0."""
    if name == "" or is_loopback(name):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
