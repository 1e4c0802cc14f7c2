"""A GPU that stops: events that are not passed, and a recorded step of which only so much is done."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from perilune.ops.gpu.kernels import leave
from perilune.ops.gpu.launch import Gpu, Launch

T = TypeVar("T")


class Queue:
    """A GPU that gets through so many events and no further, or fails."""

    def __init__(self, done: float = float("inf"), broken: str = "") -> None:
        self.done, self.broken, self.count = done, broken, itertools.count()

    def mark(self) -> Any:
        return QueueMark(self)


class QueueMark:
    def __init__(self, queue: Queue) -> None:
        self._queue, self._place = queue, -1

    def record(self) -> None:
        self._place = next(self._queue.count)

    def query(self) -> bool:
        if self._queue.broken:
            raise RuntimeError(self._queue.broken)
        return self._place < self._queue.done


class Graph:
    """Records what is launched instead of running it, and replays `until` so many of it: a GPU that stops there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, queue: Queue) -> None:
        self.queue, self.until = queue, 0
        self.calls: list[Callable[[], None]] = []
        self.own: list[tuple[int, str]] = []
        """Which of `calls` are the step's own kernels, not marks between them, and what these are called."""
        self._patch = monkeypatch

    def __call__(self, step: Callable[[], T]) -> Callable[[], T]:
        run = Gpu._run

        def kept(*args: Any) -> None:
            if args[1] is not leave:
                self.own.append((len(self.calls), Launch(args[1], "", (), {}, args[5]).name))
            self.calls.append(lambda: run(*args))

        with self._patch.context() as patch:
            patch.setattr(Gpu, "_run", kept)
            out = step()

        def replay() -> T:
            for call in self.calls[: self.until]:
                call()
            self.queue.done = float("inf") if self.until >= len(self.calls) else 0
            return out

        return replay
