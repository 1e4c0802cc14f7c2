"""`perilune cache ls|verify|prune --cache-dir FOLDER`: what a server left in its cache folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Action(StrEnum):
    ls = "ls"
    verify = "verify"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="List, check every file and delete broken ones, or make room.")],
    cache_dir: Annotated[Path, typer.Option(help="The folder a server was given.", file_okay=False, exists=True)],
    keep: Annotated[str, typer.Option(help="prune: most bytes to leave, the last used ones, like 4GiB.")] = "0",
) -> None:
    """Look after a cache folder. `verify` ends with exit status 1 if a file was broken."""
    from perilune.cache.store import entries, prune, verify
    from perilune.units import format_bytes, parse_bytes

    if action is Action.prune:
        files, size = prune(cache_dir, parse_bytes(keep))
        typer.echo(f"{files} files deleted, {format_bytes(size)}")
    elif action is Action.verify:
        whole, broken = verify(cache_dir)
        typer.echo(f"{whole} files are whole, {len(broken)} were broken and are deleted")
        for path in broken:
            typer.echo(f"  {path}")
        raise typer.Exit(1 if broken else 0)
    else:
        found = entries(cache_dir)
        for model in sorted({entry.path.parent.name for entry in found}):
            mine = [entry for entry in found if entry.path.parent.name == model]
            states = sum(entry.kind == "state" for entry in mine)
            taken = format_bytes(sum(entry.size for entry in mine))
            typer.echo(f"{model}  {len(mine) - states} pages  {states} states  {taken}")
        typer.echo(f"{len(found)} files, {format_bytes(sum(entry.size for entry in found))}")
