"""Where perilune's time goes: a clock around every op of the table the decoder computes with."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

from perilune.engine.runner import Runner


class OpTimes:
    """Seconds and calls per op since the last `take`; "the rest" is what a step spends outside of ops."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls: dict[str, int] = defaultdict(int)

    @staticmethod
    def of(runner: Runner) -> OpTimes:
        """Put clocks into `runner`, for good. Costs about a microsecond per call."""
        times = OpTimes()
        decoder = runner._decoder
        ops = {field.name: getattr(decoder.ops, field.name) for field in dataclasses.fields(decoder.ops)}
        clocked = dataclasses.replace(decoder.ops, **{name: times._clock(name, op) for name, op in ops.items()})
        runner._decoder = dataclasses.replace(decoder, ops=clocked)
        runner.run = times._clock("step", runner.run)  # type: ignore[method-assign]
        return times

    def take(self) -> dict[str, tuple[float, int]]:
        """(seconds, calls) per op, longest first; starts again from nothing."""
        total = self._seconds.pop("step", 0.0)
        steps = self._calls.pop("step", 0)
        taken = {name: (seconds, self._calls[name]) for name, seconds in self._seconds.items()}
        taken["the rest"] = (total - sum(self._seconds.values()), steps)
        self._seconds.clear()
        self._calls.clear()
        return dict(sorted(taken.items(), key=lambda item: -item[1][0]))

    def _clock(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._seconds[name] += time.perf_counter() - started
                self._calls[name] += 1

        return clocked
