"""`kv_transfer_params`: what a router asks of an engine for another's sake, and what it is answered (docs/pd.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ValidationError

from perilune.engine.request import Borrow, Handover, Lend, Lent
from perilune.errors import PeriluneError, RequestError
from perilune.http.sse import ClientGoneError
from perilune.pd.errors import NotLentError
from perilune.server.body import LooseBody
from perilune.server.front import Front
from perilune.server.stamp import require_stamp

PREFILL_HEADER = "X-Perilune-Prefill"


class RoleError(PeriluneError):
    """The engine's role does not include this."""

    http_status = 400
    code = "pd_role"


class OffError(PeriluneError):
    """The engine hands nothing over."""

    http_status = 400
    code = "pd_off"


class _Params(LooseBody):
    do_remote_decode: bool | None = None
    do_remote_prefill: bool | None = None
    early: bool | None = None
    ticket: str | None = None
    fallback: Literal["prefill", "error"] | None = None


class LentBody(BaseModel):
    """`kv_transfer_params` of an answer: what the decode engine is to be sent."""

    do_remote_prefill: Literal[True]
    ticket: str
    engine: str
    tokens: int

    @staticmethod
    def of(lent: Lent) -> LentBody:
        return LentBody(do_remote_prefill=True, ticket=lent.ticket, engine=lent.engine, tokens=lent.tokens)


def handover_of(front: Front, request: Request, params: dict[str, Any] | None, prompts: int = 1) -> Handover | None:
    """What `kv_transfer_params` ask for. None: a whole request.

    Raises ForbiddenError for anybody but the cluster's router, OffError, RoleError, NotLentError or RequestError.
    """
    config = front.engine.config.pd
    if params is not None:
        require_handovers(front)
        require_stamp(request)
    asked = _read(params or {})
    if config is None or asked is None:
        if config is not None and not config.serves:
            raise RoleError("This engine only reads prompts for others.", "Its role is prefill.", "Ask the router.")
        return None
    if not (config.lends if isinstance(asked, Lend) else config.borrows):
        raise RoleError(f"An engine of the role {config.role} does not do this.")
    if prompts != 1:
        raise NotLentError("The request cannot be divided.", "It has several prompts.", "Send it to a decode engine.")
    return asked


def _read(params: dict[str, Any]) -> Handover | None:
    try:
        given = _Params.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"kv_transfer_params.{where}: {first['msg']}.", param="kv_transfer_params") from error
    if given.do_remote_decode:
        return Lend(bool(given.early))
    if not given.do_remote_prefill:
        return None
    if given.ticket is None:
        raise RequestError("kv_transfer_params have no ticket.", "do_remote_prefill needs one.", param="ticket")
    return Borrow(given.ticket, given.fallback)


def require_handovers(front: Front) -> None:
    """Raises OffError for an engine without a cluster key."""
    if front.engine.config.pd is None:
        raise OffError("This engine hands nothing over.", "It was started without a cluster key.", "See docs/pd.md.")


@contextmanager
def answered(front: Front, handover: Handover | None) -> Iterator[None]:
    """If the request fails here, whoever keeps its cache is told and need not wait."""
    try:
        yield
    except PeriluneError as error:
        if isinstance(handover, Borrow):
            front.engine.withdraw(handover.ticket, str(error))
        raise


async def kept(front: Front, request: Request, lent: Lent) -> None:
    """Before a ticket is sent: if nobody is there to take it, the cache need not wait. Raises ClientGoneError."""
    if await request.is_disconnected():
        front.engine.withdraw(lent.ticket, "the router is gone")
        raise ClientGoneError("The router closed its connection.")


def prefill_header(remote: bool | None) -> dict[str, str]:
    """Where the prompt was computed, if the request came with a ticket."""
    return {} if remote is None else {PREFILL_HEADER: "remote" if remote else "local"}
