"""Waiting for a GPU with an end to patience, and knowing then which kernel was running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from perilune.errors import EngineDeadError
from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.launch import Launch

SPIN_SECONDS = 0.02
"""How long a wait keeps its core busy: a step takes milliseconds, and waking up would cost a share of one."""


class Mark(Protocol):
    """A place in a GPU's queue: `torch.cuda.Event`."""

    def record(self) -> None:
        """It is passed when all that was started until now is done."""

    def query(self) -> bool:
        """Whether it was passed. Raises RuntimeError if the GPU has failed."""


class Watch:
    """Follows what one GPU is given to do. `each`: kernel by kernel, so that one that hangs is named; else step by
    step, and the step's kernels are."""

    def __init__(self, seconds: float, mark: Callable[[], Mark], each: bool = True) -> None:
        self.each = each
        self._seconds, self._make = seconds, mark
        self._marks: list[Mark] = []  # made once, used again
        self._under_way: list[str] = []
        self._passed = 0
        self._deaf = False

    def starts(self, launch: Launch, arch: Arch) -> None: ...

    def launched(self, launch: Launch) -> None:
        if not self._deaf:
            self._note(f"{launch.name} ({launch.form})" if launch.form else launch.name, self.each)

    def _note(self, name: str, marked: bool) -> None:
        if marked:
            self._mark(len(self._under_way)).record()
        self._under_way.append(name)

    def _mark(self, index: int) -> Mark:
        while index >= len(self._marks):
            self._marks.append(self._make())
        return self._marks[index]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What is launched inside is recorded in a graph, not run."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def wait(self, what: str) -> None:
        """Until all that was started is done. `what`: how to call it where no kernel was launched by itself.

        Raises EngineDeadError if that takes too long or the GPU fails, with the kernel that was running.
        """
        self._note(what, True)
        end, started = self._marks[len(self._under_way) - 1], time.monotonic()
        try:
            while not end.query():
                waited = time.monotonic() - started
                if waited > self._seconds:
                    raise self._dead(f"It did not answer for {self._seconds:.0f} s.", what)
                if waited > SPIN_SECONDS:
                    time.sleep(0.001)
        except RuntimeError as error:
            raise self._dead(str(error).strip().splitlines()[0], what) from error
        self._under_way.clear()

    def _dead(self, why: str, what: str) -> EngineDeadError:
        running = f"{what}, which ran {', '.join(dict.fromkeys(self._under_way[:-1])) or 'as recorded'}"
        fix = "Start with --eager to have the kernel named."
        if self.each:
            running, fix = self._running(), "Please report it; --kernels reference or --device cpu does without it."
        return EngineDeadError(f"The GPU was running {running}.", why, fix)

    def _running(self) -> str:
        """The first kernel whose mark was not passed. Of a GPU that failed, all marks say so."""
        for name, mark in zip(self._under_way, self._marks, strict=False):
            try:
                if not mark.query():
                    return name
            except RuntimeError:
                return f"{name} or one after it"
        return "nothing"
