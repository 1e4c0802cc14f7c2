"""Reads a host: this one, or one recorded below a folder. Every reading is scrubbed, kept, and never raises.

A reading has a kind and a name. Kinds: `file` (name is the path), `device` (a node's mode and whether this user may
use it), `command` (the output of one of `live.COMMANDS`), `variable` (of the environment), `package` (the version of an
installed Python package). In a recorded host files lie at their own path below the folder, everything else at
`/perilune/KIND/NAME`, and `/perilune/unreadable` lists what could not be read, a name and a reason a line.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perilune.host.scrub import scrub

ABSENT = "absent"
MOST_BYTES = 1 << 20  # of one file; the longest the rules read, a kernel log, has been seen with 300 KiB
UNREADABLE = "perilune/unreadable"


@dataclass(frozen=True)
class Reading:
    """`text`, or None and the `problem`: "absent", or why it could not be read."""

    kind: str
    name: str
    text: str | None
    problem: str = ""

    @property
    def path(self) -> str:
        """The name as evidence shows it."""
        return {"file": "", "device": "", "variable": "$"}.get(self.kind, f"{self.kind} ") + self.name

    @property
    def absent(self) -> bool:
        return self.problem == ABSENT


@dataclass(frozen=True)
class Listing:
    """The sorted `names` in a folder, numbers by value; empty with a `problem`."""

    path: str
    names: tuple[str, ...]
    problem: str = ""

    @property
    def absent(self) -> bool:
        return self.problem == ABSENT


class Source(Protocol):
    """Where readings come from. Neither method raises."""

    def read(self, kind: str, name: str) -> Reading: ...

    def names(self, path: str) -> Listing: ...


class Sysroot:
    """Scrubbed readings of one source, each made once. `given` are outputs of commands that the user ran himself."""

    def __init__(self, source: Source, given: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._given = dict(given or {})
        self._readings: dict[tuple[str, str], Reading] = {}
        self._listings: dict[str, Listing] = {}

    def read(self, kind: str, name: str) -> Reading:
        known = self._readings.get((kind, name))
        if known is None:
            if kind == "command" and name in self._given:
                known = Reading(kind, name, self._given[name])
            else:
                known = self._source.read(kind, name)
            if known.text is not None:
                known = Reading(kind, name, scrub(kind, name, known.text))
            self._readings[kind, name] = known
        return known

    def names(self, path: str, pattern: str = ".*") -> Listing:
        """Those names in a folder that match `pattern` entirely; others are not kept, so no snapshot has them."""
        listing = self._listings.get(key := f"{path}\n{pattern}")
        if listing is None:
            listing = self._source.names(path)
            chosen = tuple(name for name in listing.names if re.fullmatch(pattern, name))
            listing = self._listings[key] = Listing(path, chosen, listing.problem)
        return listing

    @property
    def readings(self) -> tuple[Reading, ...]:
        return tuple(self._readings.values())

    @property
    def listings(self) -> tuple[Listing, ...]:
        return tuple(self._listings.values())


class Recorded:
    """A host below `folder`: a snapshot, or a copy of another machine's /proc and /sys made by any means."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        listed = read_file(self._folder / UNREADABLE)[0] or ""
        self._unreadable = dict(line.split("\t", 1) for line in listed.splitlines() if "\t" in line)

    def read(self, kind: str, name: str) -> Reading:
        place = place_of(kind, name)
        if place in self._unreadable:
            return Reading(kind, name, None, self._unreadable[place])
        text, problem = read_file(self._inside(place))
        return Reading(kind, name, text, problem)

    def names(self, path: str) -> Listing:
        place = place_of("file", path)
        if place in self._unreadable:
            return Listing(path, (), self._unreadable[place])
        return list_folder(path, self._inside(place))

    def _inside(self, place: str) -> Path | None:
        """The path below the folder; None if a link in a foreign recording leads out of it, or in a circle."""
        try:
            path = (self._folder / place).resolve()
        except (OSError, RuntimeError, ValueError):
            return None
        return path if path.is_relative_to(self._folder) else None


def place_of(kind: str, name: str) -> str:
    """Where a recording keeps a reading, relative to its folder."""
    return name.lstrip("/") if kind == "file" else f"perilune/{kind}/{name.lstrip('/')}"


def read_file(path: Path | None) -> tuple[str | None, str]:
    """(text, "") or (None, problem). Only regular files: reading a pipe could block."""
    if path is None:
        return None, "a link out of the recorded host"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # Path.exists would call what may not be looked at absent
            return None, "not a file"
        with path.open("rb") as file:
            return file.read(MOST_BYTES).decode(errors="replace"), ""
    except (OSError, ValueError) as error:
        return None, problem_of(error)


def list_folder(name: str, path: Path | None) -> Listing:
    if path is None:
        return Listing(name, (), "a link out of the recorded host")
    try:
        return Listing(name, tuple(sorted((entry.name for entry in path.iterdir()), key=_by_number)))
    except (OSError, ValueError) as error:
        return Listing(name, (), problem_of(error))


def problem_of(error: OSError | ValueError) -> str:
    """A reason in words, without the path it is about."""
    if isinstance(error, FileNotFoundError):
        return ABSENT
    return (error.strerror or type(error).__name__).lower() if isinstance(error, OSError) else str(error)


def _by_number(name: str) -> list[tuple[int, int | str]]:
    """`2` before `10`, as the kernel counts and a shell does not."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]
