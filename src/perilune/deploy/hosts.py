"""What the doctor says of the host that a recipe is for, if that host can be looked at from here."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from perilune.host.distro import Family
from perilune.host.doctor import Report, choose_target, diagnose
from perilune.host.live import Live
from perilune.host.rule import Check, Target
from perilune.host.snapshot import opened
from perilune.host.sysroot import Recorded, Source, Sysroot
from perilune.host.view import Ask


@dataclass(frozen=True)
class Examined:
    """`report` is None where the host is another one than this machine; `says` is which, in words."""

    says: str
    report: Report | None = None
    checks: dict[str, Check] = field(default_factory=dict)

    @property
    def family(self) -> Family | None:
        return self.report.family if self.report else None


def examined(host: str, sysroot: Path | None = None, *, need: int | None = None, tp: int = 1) -> Examined:
    """The doctor's checks for `host`: of a recorded one, or of this machine if it is one."""
    target = Target(host)
    with ExitStack() as stack:
        source: Source = Live() if sysroot is None else Recorded(stack.enter_context(opened(sysroot)))
        root = Sysroot(source)
        found, why = choose_target(root)
        if found is not target:
            return Examined(f"this is no {host}: {why}" if sysroot is None else f"{sysroot} is no {host}: {why}")
        report = diagnose(root, target, Ask(need, tp if target is not Target.CPU else None))
    return Examined(f"{host}: {why}", report, {check.id: check for check in report.checks})
