"""A Report for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perilune.host.distro import NAMES, Family
from perilune.host.doctor import Report
from perilune.host.fixes import Reboot, strongest
from perilune.host.rule import Check, Status
from perilune.host.sources import SOURCES

_STYLE = {
    Status.FAIL: ("✗", "bold red"),
    Status.WARN: ("!", "bold yellow"),
    Status.UNKNOWN: ("?", "bold magenta"),
    Status.INFO: ("i", "cyan"),
    Status.PASS: ("✓", "green"),
    Status.SKIP: ("-", "dim"),
}


def to_json(report: Report) -> dict[str, Any]:
    """`{target, verdict, checks}`; `fix` has a text for each family of distributions, or is null."""
    return {
        "target": str(report.target),
        "verdict": str(report.verdict),
        "checks": [_check(check) for check in report.checks],
    }


def _check(check: Check) -> dict[str, Any]:
    fix = {str(family): [fix.text(family) for fix in check.fixes] for family in Family} if check.fixes else None
    return {
        "id": check.id,
        "status": str(check.status),
        "says": check.says,
        "value": check.value,
        "evidence": [{"path": evidence.path, "text": evidence.text} for evidence in check.evidence],
        "why": check.why,
        "fix": fix,
        "reboot": str(check.reboot),
        "source": [SOURCES[key] for key in check.sources],
    }


def render(report: Report) -> RenderableType:
    """The verdict, then each check, worst first: what is wrong with reason and fix, what is right in one line."""
    parts: list[RenderableType] = [_verdict(report), Text()]
    for status in (Status.FAIL, Status.WARN):
        for check in report.checks:
            if check.status is status:
                parts += [_line(check), _details(check, report.family), Text()]
    for reason, ids in _unknown(report).items():
        parts += [_row(Status.UNKNOWN, ids[0], reason), *_alike(ids)]
    parts += [Text()] if _unknown(report) else []
    for status in (Status.INFO, Status.PASS):
        lines = [_line(check) for check in report.checks if check.status is status]
        parts += [*lines, Text()] if lines else []
    skips = [check.id for check in report.checks if check.status is Status.SKIP]
    if skips:
        parts += [Text(f"- does not apply: {', '.join(skips)}", style="dim"), Text()]
    return Group(*parts, next_step(report))


def _verdict(report: Report) -> Text:
    counts = [(status, sum(check.status is status for check in report.checks)) for status in Status]
    mark, style = _STYLE[report.verdict]
    words = [part for status, count in counts if count for part in ((f"{count} {status}", _STYLE[status][1]), ", ")]
    return Text.assemble((f"{mark} {report.target}", style), (f"  {report.chosen}", "dim"), "\n  ", *words[:-1])


def _unknown(report: Report) -> dict[str, list[str]]:
    """Ids by reason: one missing file can hide what twenty rules look at."""
    reasons: dict[str, list[str]] = {}
    for check in report.checks:
        if check.status is Status.UNKNOWN:
            reasons.setdefault(check.says, []).append(check.id)
    return reasons


def _alike(ids: list[str]) -> list[RenderableType]:
    return [Padding(Text(f"the same: {', '.join(ids[1:])}", "dim"), (0, 0, 0, 21))] if ids[1:] else []


def _line(check: Check) -> Table:
    return _row(check.status, check.id, check.says)


def _row(status: Status, id: str, says: str) -> Table:
    mark, style = _STYLE[status]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=18, no_wrap=True)
    grid.add_column()
    grid.add_row(Text(mark, style), Text(id, style), Text(says))
    return grid


def _details(check: Check, family: Family | None) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=5, style="dim")
    grid.add_column()
    for label, text, style in _rows(check, family):
        grid.add_row(label, Text(text, style))
    return Padding(grid, (0, 0, 0, 21))


def _rows(check: Check, family: Family | None) -> Iterator[tuple[str, str, str]]:
    yield "why", check.why, ""
    for evidence in check.evidence[:6]:
        yield "read", f"{evidence.path}: {evidence.text}", "dim"
    for fix in check.fixes:
        if family is not None:
            yield "fix", fix.text(family), "bold"
        else:
            texts = {fix.text(each): NAMES[each] for each in Family}
            for text, name in texts.items():
                yield "fix", text if len(texts) == 1 else f"{name}: {text}", "bold"
    if check.reboot is not Reboot.NONE:
        yield "then", check.reboot, ""
    yield "from", "; ".join(SOURCES[key] for key in check.sources), "dim"


def next_step(report: Report) -> Text:
    """One line: what to do now."""
    wrong = [check for check in report.checks if check.status in (Status.FAIL, Status.WARN)]
    fixable = [check for check in wrong if check.fixes]
    if fixable:
        steps = len({fix for check in fixable for fix in check.fixes})
        after = strongest(tuple(fix for check in fixable for fix in check.fixes))
        then = "" if after is Reboot.NONE else f", then {after}" if after is Reboot.REBOOT else ", then reboot"
        script = f"`perilune doctor --fix-script fix.sh` writes the {steps} step{'s' * (steps > 1)}"
        how = f"{script}; read it, run it{then}" if report.family else "make the fixes above in your distribution's way"
        return Text.assemble(("Next: ", "bold"), f"{fixable[0].id} first. {how}; then look again.")
    unknown = [check.id for check in report.checks if check.status is Status.UNKNOWN]
    if unknown:
        return Text.assemble(
            ("Next: ", "bold"), f"find out about {', '.join(unknown[:4])}: the reason stands beside each."
        )
    return Text.assemble(("Next: ", "bold"), "nothing to change. `perilune plan MODEL` says what fits.")
