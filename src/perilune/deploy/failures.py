"""Why an engine did not start, from its exit status and the end of its log."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import field_validator

from perilune.deploy.points import CHECKS
from perilune.deploy.recipe import Reason
from perilune.deploy.strict import parse, read_toml
from perilune.errors import ConfigError, PeriluneError, nearest
from perilune.host.doctor import RULES, choose_target, examine
from perilune.host.live import Live
from perilune.host.rule import Status
from perilune.host.sysroot import Sysroot
from perilune.host.view import Ask

_TAIL_BYTES = 64_000


class EngineFailedError(PeriluneError):
    """Another engine, run as a child, did not start or ended."""

    code = "engine_failed"

    def __init__(self, kind: str, what: str, why: str = "", fix: str = "") -> None:
        self.kind = kind
        super().__init__(what, why, fix)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.kind, self.what, self.why, self.fix))


class Failure(Reason):
    """`pattern` in the log means `kind`; `check` is the doctor's rule that looks at the cause."""

    kind: str
    pattern: str
    check: str | None = None
    fix: str

    @field_validator("check")
    @classmethod
    def _check(cls, text: str | None) -> str | None:
        if text is not None and text not in CHECKS:
            raise ConfigError(f"The doctor has no rule {text!r}.", "", nearest(text, CHECKS))
        return text


@cache
def known_failures() -> tuple[Failure, ...]:
    path = Path(__file__).with_name("failures.toml")
    return tuple(parse(Failure, table, path.name) for table in read_toml(path)["failure"])


@dataclass(frozen=True)
class Ended:
    """How a child ended: `status` as subprocess gives it, negative for a signal; None if it was still running."""

    status: int | None
    log: str
    path: Path
    waited: float = 0.0


def classify(ended: Ended) -> EngineFailedError:
    """The failure as an error: what happened, the line of the log that shows it, the doctor's view, and what helps."""
    found, line = _match(ended.log)
    what = _what(ended)
    if found is None:
        kind = "timeout" if ended.status is None else "killed" if ended.status == -signal.SIGKILL else "crash"
        last = next((text for text in reversed(ended.log.splitlines()) if text.strip()), "nothing was written")
        check = "mem.reserve" if kind == "killed" else None
        says = f" {_doctor(check)}" if check else ""
        return EngineFailedError(kind, what, f"The log ends with: {last.strip()[:300]}.{says}", _fix(kind, ended))
    why = f"{found.kind}: {found.why}. The log says: {line.strip()[:300]}."
    return EngineFailedError(
        found.kind, what, f"{why} {_doctor(found.check)}".strip(), f"{found.fix}. The log: {ended.path}"
    )


def _match(log: str) -> tuple[Failure | None, str]:
    for failure in known_failures():
        for line in log.splitlines():
            if re.search(failure.pattern, line):
                return failure, line
    return None, ""


def _what(ended: Ended) -> str:
    if ended.status is None:
        return f"The engine did not answer within {ended.waited:.0f} s and was stopped."
    if ended.status < 0:
        return f"The engine was ended by {signal.Signals(-ended.status).name}."
    return f"The engine ended with status {ended.status}."


def _fix(kind: str, ended: Ended) -> str:
    how = {
        "timeout": "raise --ready-seconds: the first start downloads and compiles",
        "killed": "if nobody else did, the kernel did for want of memory: lower --max-context",
        "crash": "read the log",
    }[kind]
    return f"{how[0].upper()}{how[1:]}. The log: {ended.path}"


def _doctor(id: str | None) -> str:
    """The rule's verdict on this machine, where it applies and does not simply pass."""
    rule = next((rule for rule in RULES if rule.id == id), None)
    if rule is None:
        return ""
    root = Sysroot(Live())
    target, _ = choose_target(root)
    if target not in rule.targets:
        return ""
    check = examine(rule, root, target, Ask())
    return "" if check.status is Status.SKIP else f"The doctor's {check.id}: {check.status}, {check.says}."


def tail(path: Path, start: int = 0) -> str:
    """The end of a log, of what was written from byte `start` on: before that are earlier runs."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(start, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
