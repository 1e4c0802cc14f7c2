"""A server's own counters, from /metrics, as far as it has any."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import httpx

HANDED_OVER = "perilune_route_requests_total{prefill}"
"""Of a router's requests those whose prompt another engine read: the one label that is asked for."""
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(\{[^}]*\})? ([-+0-9.eE]+|NaN|[-+]?Inf)(?: \d+)?$", re.MULTILINE)


def scrape(url: str, headers: Mapping[str, str] | None = None) -> dict[str, float]:
    """Every metric by name, summed over its labels. Empty for a server without."""
    address = url.rstrip("/").removesuffix("/v1") + "/metrics"
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(address, headers=dict(headers or {}), timeout=10)
        if answer.status_code == 200:
            return parse(answer.text)
    return {}


def parse(text: str) -> dict[str, float]:
    """The Prometheus text format, less what is not needed: types, labels, times."""
    found: dict[str, float] = {}
    for name, labels, value in _LINE.findall(text):
        number = float(value)
        if number == number:  # not NaN
            found[name] = found.get(name, 0.0) + number
            if name == "perilune_route_requests_total" and re.search(r'\bprefill="[^"]', labels):
                found[HANDED_OVER] = found.get(HANDED_OVER, 0.0) + number
    return found
