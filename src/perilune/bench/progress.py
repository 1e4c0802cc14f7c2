"""What a person sees while it measures: a live line at the bottom of a terminal, or plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Meter(Protocol):
    """Told of a sweep as it goes: how many runs there are, which one begins, what is to be said when one has ended."""

    def total(self, runs: int) -> None: ...

    def begin(self, what: str) -> None: ...

    def end(self) -> None: ...

    def say(self, line: str) -> None: ...


class Plain:
    """One line at a time on stderr, for logs and pipes."""

    def total(self, runs: int) -> None:
        """Nothing: each server says how many runs it has."""

    def begin(self, what: str) -> None:
        """Nothing: a run is one line, when it has ended."""

    def end(self) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Live:
    """Lines scroll by above; below are the run in progress, a bar, and the time it has taken and may take."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def total(self, runs: int) -> None:
        self._progress.update(self._task, total=runs)

    def begin(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def end(self) -> None:
        self._progress.advance(self._task)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)


@contextmanager
def meter(console: Console | None = None) -> Iterator[Meter]:
    """Live on a terminal (stderr, unless another is given), plain elsewhere."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Plain()
        return
    done = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*done, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Live(progress, progress.add_task("starting", total=None))
