"""A rule: an id, why it matters, where that is known from, and a pure function over a view of the host.

The function looks at the host and returns a Finding. It raises CannotTell where a reading it rests on is missing,
unreadable or makes no sense; that becomes the verdict `unknown`, so no rule passes on what it could not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from perilune.host.fixes import Fix, Reboot

if TYPE_CHECKING:
    from perilune.host.view import Host


class Status(StrEnum):
    """From the worst to the best: `unknown` may hide a failure, `skip` does not apply to this host."""

    FAIL = "fail"
    WARN = "warn"
    UNKNOWN = "unknown"
    INFO = "info"
    PASS = "pass"  # noqa: S105 - a verdict
    SKIP = "skip"


class Target(StrEnum):
    STRIX_HALO = "strix-halo"
    MI300X = "mi300x"
    MI355X = "mi355x"
    NVIDIA = "nvidia"
    CPU = "cpu"


GFX = {Target.STRIX_HALO: "gfx1151", Target.MI300X: "gfx942", Target.MI355X: "gfx950"}
STRIX = frozenset((Target.STRIX_HALO,))
INSTINCT = frozenset((Target.MI300X, Target.MI355X))
AMD = STRIX | INSTINCT
GPU = AMD | {Target.NVIDIA}
EVERY = frozenset(Target)


class CannotTell(Exception):
    """A reading that a verdict rests on is not there or not to be understood."""


@dataclass(frozen=True)
class Evidence:
    """Where it stands, and the raw text, cut to what matters."""

    path: str
    text: str


@dataclass(frozen=True)
class Finding:
    """`says` is one line about this host. `why` replaces the rule's own reason where there is a better one."""

    status: Status
    says: str
    value: str | int | None = None
    fixes: tuple[Fix, ...] = ()
    why: str = ""


def passed(says: str, value: str | int | None = None) -> Finding:
    return Finding(Status.PASS, says, value)


def info(says: str, value: str | int | None = None, *fixes: Fix) -> Finding:
    return Finding(Status.INFO, says, value, fixes)


def skipped(says: str) -> Finding:
    return Finding(Status.SKIP, says)


def warned(says: str, value: str | int | None = None, *fixes: Fix, why: str = "") -> Finding:
    return Finding(Status.WARN, says, value, fixes, why)


def failed(says: str, value: str | int | None = None, *fixes: Fix, why: str = "") -> Finding:
    return Finding(Status.FAIL, says, value, fixes, why)


@dataclass(frozen=True)
class Rule:
    """`sources` are keys of `sources.SOURCES`."""

    id: str
    targets: frozenset[Target]
    why: str
    sources: tuple[str, ...]
    look: Callable[[Host], Finding]


def rule(id: str, targets: frozenset[Target], *, why: str, source: str) -> Callable[[Callable[[Host], Finding]], Rule]:
    """Turns a function into a Rule; `source` is one or more keys with blanks between them."""
    return lambda look: Rule(id, targets, why, tuple(source.split()), look)


@dataclass(frozen=True)
class Check:
    """A rule's verdict on one host."""

    id: str
    status: Status
    says: str
    value: str | int | None
    evidence: tuple[Evidence, ...]
    why: str
    fixes: tuple[Fix, ...]
    reboot: Reboot
    sources: tuple[str, ...]
