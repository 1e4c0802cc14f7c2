"""What is shown while it measures: a line that moves on a terminal, plain lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from perilune.bench.progress import Plain, meter


def shown(terminal: bool) -> tuple[str, bool]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with meter(console) as found:
        found.total(2)
        for name in ("one", "two"):
            found.begin(name)
            found.say(f"  {name}: valid [x]")
            found.end()
        return out.getvalue(), isinstance(found, Plain)


def test_a_terminal_gets_a_bar_and_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    text, plain = shown(True)
    assert not plain
    assert "  one: valid [x]" in text
    assert "  two: valid [x]" in text


def test_a_log_gets_lines_and_no_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    text, plain = shown(False)
    assert plain
    assert text == ""
    assert capsys.readouterr().err.splitlines() == ["  one: valid [x]", "  two: valid [x]"]
