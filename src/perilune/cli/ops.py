"""`perilune ops`: which backend serves which op, and why others refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from perilune.ops.select import Needs, choose


def ops(json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Print the kernels this host runs bfloat16 models on; float32 stays on the reference, which is exact."""
    console = Console(highlight=False)
    choices = choose(Needs()).choices
    if json:
        console.print_json(data=[asdict(choice) for choice in choices])
        return
    grid = Table("op", "what", "backend", "refused", box=None, header_style="dim")
    for choice in choices:
        refused = "; ".join(f"{backend}: {reason}" for backend, reason in choice.refused)
        grid.add_row(choice.op, choice.what, choice.backend, f"[dim]{refused}[/]")
    console.print(grid)
