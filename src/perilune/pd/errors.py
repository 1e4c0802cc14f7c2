"""What goes wrong between two engines. Each says what, why and what helps, as every PeriluneError does."""

from __future__ import annotations

from perilune.errors import PeriluneError


class MismatchError(PeriluneError):
    """Two engines cannot exchange caches; `differences` is the complete list, one sentence each."""

    code = "pd_mismatch"

    def __init__(self, what: str, why: str = "", fix: str = "", *, param: str | None = None) -> None:
        super().__init__(what, why, fix, param=param)
        self.differences = tuple(why.split("\n")) if why else ()


class PlanError(PeriluneError):
    """Pages, slot or lengths do not fit the region tables: nothing was moved."""

    code = "pd_plan"


class TicketError(PeriluneError):
    """A ticket was not signed by this cluster, is damaged, used, or belongs to another prompt."""

    http_status = 400
    code = "pd_ticket"


class LostError(PeriluneError):
    """A cache did not arrive, and the request shall not be computed here: another attempt may succeed."""

    http_status = 503
    code = "pd_lost"


class NotLentError(PeriluneError):
    """A request that cannot be divided between two engines; one alone can serve it."""

    http_status = 400
    code = "pd_local"


class TransportError(PeriluneError):
    """A transport cannot be set up or cannot reach a peer."""

    http_status = 503
    code = "pd_transport"
