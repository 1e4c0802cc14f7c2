"""Recorded hosts as text: one file per host, for people to read and compare, and what tests make of them.

`--- KIND NAME` begins a reading and the lines below are its text; `--- folder PATH` is an empty folder;
`--- unreadable KIND NAME: REASON` is what could not be read. Lines before the first `---` say where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perilune.host.doctor import RULES, examine
from perilune.host.rule import Check, Target
from perilune.host.sysroot import ABSENT, UNREADABLE, Listing, Reading, Sysroot, _by_number, place_of
from perilune.host.view import Ask

FIXTURES = Path(__file__).parent / "fixtures"


class Problem(str):
    """Why something cannot be read."""


Bundle = dict[tuple[str, str], str | Problem | None]  # None: an empty folder


def load(name: str) -> Bundle:
    bundle: Bundle = {}
    key: tuple[str, str] | None = None
    for line in (FIXTURES / f"{name}.txt").read_text().splitlines():
        if line.startswith("--- "):
            kind, _, rest = line[4:].partition(" ")
            key = None
            if kind == "folder":
                bundle["file", rest] = None
            elif kind == "unreadable":
                what, _, reason = rest.rpartition(": ")
                kind, _, rest = what.partition(" ")
                bundle[kind, rest] = Problem(reason)
            else:
                key = (kind, rest)
                bundle[key] = ""
        elif key is not None:
            bundle[key] = f"{bundle[key]}{line}\n"
    return bundle


class Memory:
    """A bundle as a source of readings, without files: for tables of many hosts that differ in one reading."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def read(self, kind: str, name: str) -> Reading:
        found = self.bundle.get((kind, name), Problem(ABSENT))
        if found is None:
            return Reading(kind, name, None, "not a file")
        return Reading(kind, name, None, str(found)) if isinstance(found, Problem) else Reading(kind, name, found)

    def names(self, path: str) -> Listing:
        if isinstance(problem := self.bundle.get(("file", path)), Problem):
            return Listing(path, (), problem)
        inside = {
            name.removeprefix(f"{path}/").split("/")[0]
            for kind, name in self.bundle
            if kind == "file" and name.startswith(f"{path}/")
        }
        if not inside and ("file", path) not in self.bundle:
            return Listing(path, (), ABSENT)
        return Listing(path, tuple(sorted(inside, key=_by_number)))


def write_tree(bundle: Bundle, folder: Path) -> Path:
    """The bundle as a recorded host below `folder`."""
    unreadable = ""
    for (kind, name), text in bundle.items():
        place = folder / place_of(kind, name)
        if isinstance(text, Problem):
            unreadable += f"{place_of(kind, name)}\t{text}\n"
        elif text is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    (folder / UNREADABLE).parent.mkdir(parents=True, exist_ok=True)
    (folder / UNREADABLE).write_text(unreadable)
    return folder


def changed(bundle: Bundle, changes: Mapping[tuple[str, str], str | Problem | None]) -> Bundle:
    return {**bundle, **changes}


def without(bundle: Bundle, *keys: tuple[str, str]) -> Bundle:
    return {key: text for key, text in bundle.items() if key not in keys}


def check(bundle: Bundle, id: str, target: Target = Target.STRIX_HALO, ask: Ask | None = None) -> Check:
    """One rule's verdict on a bundle. An error inside the rule is an error of the test."""
    (rule,) = [rule for rule in RULES if rule.id == id and target in rule.targets]
    found = examine(rule, Sysroot(Memory(bundle)), target, ask or Ask())
    assert "the rule itself failed" not in found.says, found.says
    return found
