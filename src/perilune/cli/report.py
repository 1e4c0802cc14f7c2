"""A PeriluneError on the terminal."""

from __future__ import annotations

from rich.console import Console

from perilune.errors import PeriluneError


def report(error: PeriluneError) -> None:
    """What, why and the fix, on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print("[bold red]error[/] ", end="")
    console.print(error.what, markup=False)
    for label, text in (("why", error.why), ("fix", error.fix)):
        if text:
            console.print(f"  [dim]{label}[/]  ", end="")
            console.print(text, markup=False)
