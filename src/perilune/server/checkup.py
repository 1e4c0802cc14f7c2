"""What `perilune doctor` says of this host, kept for a while."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from perilune.host.doctor import diagnose
from perilune.host.live import Live
from perilune.host.report import to_json
from perilune.host.sysroot import Sysroot

GOOD_FOR_SECONDS = 600.0
"""A diagnosis reads files and runs a few programs; hosts change seldom."""


@dataclass
class Checkup:
    """The latest diagnosis, made when somebody asks."""

    _made: float = 0.0
    _report: dict[str, Any] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def report(self) -> dict[str, Any]:
        async with self._lock:
            if self._report is None or time.monotonic() - self._made > GOOD_FOR_SECONDS:
                report = await asyncio.to_thread(lambda: to_json(diagnose(Sysroot(Live()))))
                self._report, self._made = report, time.monotonic()
            return self._report
