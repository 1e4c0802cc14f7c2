"""An event loop that wakes when it was asked to. asyncio's own counts in whole milliseconds, rounded up: every planned
start and every token of the null server came up to one late, and that was measured as the server's."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

if hasattr(selectors, "EpollSelector"):

    class _Fine(selectors.EpollSelector):
        """Sleeps in select(2), which counts microseconds, on the epoll descriptor itself; epoll then only looks."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0 and self.fileno() < 1024:  # more, select(2) cannot name
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

    def loop() -> asyncio.AbstractEventLoop:
        """A new event loop."""
        return asyncio.SelectorEventLoop(_Fine())

else:  # kqueue counts nanoseconds

    def loop() -> asyncio.AbstractEventLoop:
        """A new event loop."""
        return asyncio.new_event_loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)
