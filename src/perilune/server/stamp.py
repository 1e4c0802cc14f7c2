"""Requests of the cluster's own: those that carry a stamp made with its key (docs/pd.md). Plain ASGI."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perilune.errors import PeriluneError
from perilune.http.errors import error_response
from perilune.pd.keys import STAMP_HEADER, ClusterKey

_HEADER = STAMP_HEADER.lower().encode()


class ForbiddenError(PeriluneError):
    """Only the cluster's router may ask for this, and the request does not show that it comes from there."""

    http_status = 403
    code = "pd_forbidden"


class Stamps:
    """Sees a request first: a right stamp vouches for its sender, a wrong one ends it. Without a key, none is read."""

    def __init__(self, app: ASGIApp, key: ClusterKey | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stamp = dict(scope["headers"]).get(_HEADER) if scope["type"] == "http" and self._key else None
        if stamp is not None and self._key is not None:
            digest = self._key.stamped(scope["method"], scope["path"], stamp.decode("latin-1"))
            if digest is None:
                await error_response(_wrong())(scope, receive, send)
                return
            scope.setdefault("state", {})["vouched"] = digest
        await self._app(scope, receive, send)


class StampedBodies:
    """Sees a request last, its body read: a stamped one must be the body that the stamp was made for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        digest = scope.get("state", {}).get("vouched")
        if digest is None:
            await self._app(scope, receive, send)
            return
        first: Message | None = await receive()
        body = (first or {}).get("body", b"")
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), digest):
            await error_response(_wrong())(scope, receive, send)
            return

        async def again() -> Message:
            nonlocal first
            message, first = first, None
            return message if message is not None else await receive()

        await self._app(scope, again, send)


def stamped(request: Request) -> bool:
    return "vouched" in request.scope.get("state", {})


def require_stamp(request: Request) -> None:
    """Raises ForbiddenError unless the request is the cluster's own."""
    if not stamped(request):
        raise ForbiddenError(
            "This is for the cluster's router.", f"The request carries no {STAMP_HEADER}.",
            "Clients leave kv_transfer_params out.",
        )  # fmt: skip


def _wrong() -> ForbiddenError:
    return ForbiddenError(
        f"The {STAMP_HEADER} header is not this cluster's.", "The keys differ, or the request was changed.",
        "Give engines and router the same cluster key.",
    )  # fmt: skip
