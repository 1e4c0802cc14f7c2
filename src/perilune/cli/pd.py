"""`perilune pd check URL URL`: can caches move between two engines, before any request."""

from __future__ import annotations

from typing import Annotated

import typer

pd = typer.Typer(help="Hand-overs between engines.", no_args_is_help=True)


@pd.callback()
def _group() -> None:
    """Hand-overs between engines."""


@pd.command()
def check(
    here: Annotated[str, typer.Argument(help="One engine, like http://10.0.0.7:8000.")],
    there: Annotated[str, typer.Argument(help="The other.")],
    pd_key_file: Annotated[
        str | None, typer.Option(help="File with the cluster's key; or set PERILUNE_PD_KEY.")
    ] = None,
) -> None:
    """Print every difference that keeps caches from moving between two engines; exit status 1 if there is one."""
    from perilune.errors import ConfigError
    from perilune.pd.keys import KEY_VARIABLE, ClusterKey
    from perilune.server.compare import compare, find

    key = ClusterKey.load(pd_key_file)
    if key is None:
        raise ConfigError("There is no cluster key.", "Engines answer nobody else.", f"Set {KEY_VARIABLE}.")
    first, second = find(here, key), find(there, key)
    typer.echo(f"here   {first.line}\nthere  {second.line}")
    found = compare(first, second)
    for difference in found:
        typer.echo(f"- {difference}")
    if found:
        raise typer.Exit(1)
    typer.echo("caches can move between them")
