"""Waiting for a GPU with an end to patience, and knowing then which kernel was running.

What is launched by itself is followed by events, what a graph replays by the `Trail` that was recorded with it. A mark
after each kernel names the one; a mark after some costs a fraction of that and names a few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from perilune.errors import EngineDeadError
from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.kernels import leave
from perilune.ops.gpu.launch import Launch
from perilune.ops.gpu.trail import Trail

T = TypeVar("T")
Step = Callable[[], T]

SPIN_SECONDS = 0.02
"""How long a wait keeps its core busy: a step takes milliseconds, and waking up would cost a share of one."""
STRIDE = 16
"""Kernels from mark to mark unless asked otherwise. A layer has about 25, so what hangs is known within one, for a
sixteenth more kernels, each of one number. 1 names the one, for twice the kernels."""


class Mark(Protocol):
    """A place in a GPU's queue: `torch.cuda.Event`."""

    def record(self) -> None:
        """It is passed when all that was started until now is done."""

    def query(self) -> bool:
        """Whether it was passed. Raises RuntimeError if the GPU has failed."""


@dataclass(frozen=True)
class Recorded:
    """A recorded step: its kernels in order, and after how many of them it leaves that number on the trail."""

    names: list[str] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)


class Watch:
    """Follows what one GPU is given to do. `each`: with a mark after every kernel that is launched by itself, so that
    one that hangs is named; else, and in what is recorded, after every `stride`."""

    def __init__(
        self, seconds: float, mark: Callable[[], Mark], trail: Trail, each: bool = True, stride: int = STRIDE
    ) -> None:
        self.each, self._stride = each, stride
        self._seconds, self._make, self._trail = seconds, mark, trail
        self._events: list[Mark] = []  # made once, used again
        self._used = 0
        self._under_way: list[str] = []
        self._marks: list[tuple[int, Callable[[], bool]]] = []  # how many of these are done if it is passed
        self._recording: Recorded | None = None

    def starts(self, launch: Launch, arch: Arch) -> None: ...

    def launched(self, launch: Launch) -> None:
        if launch.kernel is not leave:
            self.note(f"{launch.name} ({launch.form})" if launch.form else launch.name)

    def note(self, name: str) -> None:
        """What was started just now is called `name`."""
        if self._recording is not None:
            self._recording.names.append(name)
            if len(self._recording.names) % self._stride == 0:
                self._leave(self._recording)
            return
        self._under_way.append(name)
        if self.each or len(self._under_way) - self._last >= self._stride:
            self._mark()

    def follows(self, capture: Callable[[Step[T]], Step[T]]) -> Callable[[Step[T]], Step[T]]:
        """`capture`, with marks between the kernels that it records and with their names remembered."""

        def captured(step: Step[T]) -> Step[T]:
            recorded = self._recording = Recorded()

            def marked() -> T:
                out = step()
                self._leave(recorded)  # from here on it is not this step's kernels
                return out

            try:
                replay = capture(marked)
            finally:
                self._recording = None

            def followed() -> T:
                self._trail.restart()
                self._takes(recorded)
                return replay()

            return followed

        return captured

    def wait(self, what: str) -> None:
        """Until all that was started is done. `what`: how to call it where no kernel was launched by itself.

        Raises EngineDeadError if that takes too long or the GPU fails, with the kernel that was running, or the few
        that can be it.
        """
        started = time.monotonic()
        self._under_way.append(what)
        end = self._mark()
        try:
            while not end.query():
                waited = time.monotonic() - started
                if waited > self._seconds:
                    raise self._dead(f"It did not answer for {self._seconds:.0f} s.")
                if waited > SPIN_SECONDS:
                    time.sleep(0.001)
        except RuntimeError as error:
            raise self._dead(str(error).strip().splitlines()[0]) from error
        self._under_way.clear()
        self._marks.clear()
        self._used = 0

    @property
    def _last(self) -> int:
        return self._marks[-1][0] if self._marks else 0

    def _mark(self) -> Mark:
        """An event after all that is under way."""
        if self._used == len(self._events):
            self._events.append(self._make())
        event = self._events[self._used]
        self._used += 1
        event.record()
        self._marks.append((len(self._under_way), event.query))
        return event

    def _leave(self, recorded: Recorded) -> None:
        self._trail.leave(len(recorded.names))
        recorded.marks.append(len(recorded.names))

    def _takes(self, recorded: Recorded) -> None:
        """A replay of it is what comes next."""
        before = len(self._under_way)
        self._under_way += recorded.names
        self._marks += [(before + done, lambda done=done: self._trail.done >= done) for done in recorded.marks]  # type: ignore[misc]

    def _dead(self, why: str) -> EngineDeadError:
        running, several = self._running()
        fix = "Start with --gpu-marks 1, or --eager, to have the kernel named."
        if not several:
            fix = "Please report it; --kernels reference or --device cpu does without it."
        return EngineDeadError(f"The GPU was running {running}.", why, fix)

    def _running(self) -> tuple[str, bool]:
        """What lies between the last mark that was passed and the first that was not, and whether that is several.

        Of a GPU that failed no event can say anything, only trails can.
        """
        done, end = 0, None
        for count, passed in self._marks:
            try:
                if not passed():
                    end = count
                    break
                done = count
            except RuntimeError:
                continue
        *kernels, last = self._under_way[done:end]
        names = kernels if kernels and end in (None, len(self._under_way)) else [*kernels, last]
        if end is None:
            return f"{names[0]} or one after it", False
        if len(names) == 1:
            return names[0], False
        where = f"{done + 1} to {done + len(names)} of {self._under_way[-1]}'s {len(self._under_way) - 1}"
        return f"one of kernels {where}: {', '.join(dict.fromkeys(names))}", True
