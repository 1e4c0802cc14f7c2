"""`perilune pd check`: can caches move between two running engines? Both are asked, over HTTP and control channel.

An HTTP client of the server beside it, as smoke.py is.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from perilune.errors import PeriluneError
from perilune.pd.keys import STAMP_HEADER, ClusterKey
from perilune.pd.messages import Description
from perilune.pd.probe import ask
from perilune.pd.regions import differences

_PATH = "/pd/status"
_SECONDS = 10.0


class CheckError(PeriluneError):
    """An engine could not be asked."""

    code = "pd_check_failed"


@dataclass(frozen=True)
class Asked:
    """One engine's answer over its control channel, and the URL it was found by."""

    url: str
    role: str
    description: Description

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(self.description.rendezvous.addresses)

    @property
    def line(self) -> str:
        tables = self.description.rendezvous.tables
        return (
            f"{self.url}: {self.description.engine}, role {self.role}, {len(tables)} rank{'s' * (len(tables) > 1)}, "
            f"control {self.description.control}, {', '.join(self.transports)}"
        )


def find(url: str, key: ClusterKey) -> Asked:
    """Raises CheckError if the server is not an engine of this cluster, TransportError if its control channel does not
    answer from here."""
    headers = {STAMP_HEADER: key.stamp("GET", _PATH)}
    try:
        answer = httpx.get(url.rstrip("/") + _PATH, headers=headers, timeout=_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CheckError(f"{url} does not answer.", f"{error}.") from error
    if answer.status_code != 200:
        raise CheckError(
            f"{url} does not say what it is.", f"HTTP {answer.status_code}: {answer.text[:300]}",
            f"It needs the cluster key named {key.name}.",
        )  # fmt: skip
    status = answer.json()
    return Asked(url, status["role"], ask(status["control"], key))


def compare(here: Asked, there: Asked) -> list[str]:
    """Every reason why caches cannot move between the two, in sentences; empty if they can."""
    found = differences(here.description.rendezvous.tables, there.description.rendezvous.tables)
    if not set(here.transports) & set(there.transports):
        found.append(f"no transport in common: {', '.join(here.transports)} here, {', '.join(there.transports)} there")
    if {here.role, there.role} in ({"prefill"}, {"decode"}):
        found.append(f"both have the role {here.role}")
    return found
