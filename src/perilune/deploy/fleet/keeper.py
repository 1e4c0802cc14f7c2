"""Keeping a fleet as its file says: starts what is missing, again what died, and stops what is no longer wanted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perilune.deploy.fleet.commands import Command, command, workers_yaml
from perilune.deploy.fleet.file import load_fleet
from perilune.deploy.fleet.placement import Host, Seat, place
from perilune.errors import ConfigError

Say = Callable[[str], None]

_LONGEST_PAUSE = 60.0


class Launcher(Protocol):
    """What starts and ends processes on hosts. No call waits for an engine to be ready."""

    def hosts(self) -> Sequence[Host]:
        """Those there now."""

    def start(self, seat: Seat, made: Command) -> None:
        """Starts an engine; its failure is seen in `ended`."""

    def ended(self) -> Mapping[str, str]:
        """Engines started and not stopped that do not run any more, and why: the end of their log."""

    def stop(self, name: str) -> None:
        """Ends an engine, gently at first; returns once it is being ended."""

    def ending(self) -> Collection[str]:
        """Engines that are being ended and may still hold their ports."""


@dataclass
class _Running:
    seat: Seat
    made: Command
    since: float


class Keeper:
    """One step at a time; `now` is a clock. Scaling up and down is a change of the file.

    `workers_file` is written for the router: an engine is in it as long as it is meant to run, since the router looks
    for itself who is healthy, and is taken out before it is stopped.
    """

    def __init__(self, path: Path, launcher: Launcher, workers_file: Path, say: Say) -> None:
        self._path, self._launcher, self._workers_file, self._say = path, launcher, workers_file, say
        self._seen = _mtime(path)
        self.file = load_fleet(path)
        self.running: dict[str, _Running] = {}
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._missing: dict[str, str] = {}
        self._written = ""

    def step(self, now: float | None = None) -> None:
        """Brings what runs nearer to what the file says."""
        at = time.monotonic() if now is None else now
        self._reload()
        self._bury(at)
        placement = place(self.file, self._launcher.hosts(), {name: each.seat for name, each in self.running.items()})
        wanted = {name: command(self.file, seat) for name, seat in placement.seats.items()}
        leaving = [name for name, each in self.running.items() if wanted.get(name) != each.made]
        self._write(leaving)
        for name in leaving:
            moves = wanted.get(name) and placement.seats[name].host != self.running[name].seat.host
            anew = f"moving {name}: its host is gone" if moves else f"starting {name} anew: the file changed"
            self._say(anew if name in wanted else f"stopping {name}")
            self._launcher.stop(name)
            del self.running[name]
        ending = self._launcher.ending()
        for name, made in wanted.items():
            if name not in self.running and name not in ending and at >= self._not_before.get(name, at):
                seat = placement.seats[name]
                self._say(f"starting {name} on {seat.host.name}: {made.url}")
                self._launcher.start(seat, made)
                self.running[name] = _Running(seat, made, at)
        self._write()
        for name, why in placement.missing.items():
            if self._missing.get(name) != why:
                self._say(f"{name} has no place: {why}")
        self._missing = placement.missing

    def close(self) -> None:
        """Stops everything."""
        self._write(list(self.running))
        for name in list(self.running):
            self._launcher.stop(name)
            del self.running[name]

    def _reload(self) -> None:
        """A file that cannot be read is said once, and the fleet stays as it was."""
        seen = _mtime(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.file = load_fleet(self._path)
            self._say(f"{self._path} changed")
        except ConfigError as error:
            self._say(f"{error} The fleet stays as it is.")

    def _bury(self, at: float) -> None:
        """What died is started again, later each time it does; what ran a while before counts as the first."""
        for name, why in list(self._launcher.ended().items()):
            if (dead := self.running.pop(name, None)) is None:
                continue
            self._launcher.stop(name)
            failures = 1 + (self._failures.get(name, 0) if at - dead.since < _LONGEST_PAUSE else 0)
            self._failures[name] = failures
            pause = 0.0 if failures == 1 else min(_LONGEST_PAUSE, 2.0 ** (failures - 1))
            self._not_before[name] = at + pause
            self._say(f"{name} ended: {why}" + (f"; again in {pause:g} s" if pause else ""))

    def _write(self, leaving: Collection[str] = ()) -> None:
        """Whole or not at all: the router may read at any moment."""
        text = workers_yaml({name: each.made.url for name, each in self.running.items() if name not in leaving})
        if text == self._written:
            return
        made = self._workers_file.with_suffix(".new")
        made.write_text(text)
        os.replace(made, self._workers_file)
        self._written = text


def _mtime(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
