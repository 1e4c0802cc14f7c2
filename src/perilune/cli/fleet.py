"""`perilune fleet`: many engines and one router from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

fleet = typer.Typer(no_args_is_help=True, help="Many engines and one router from one file.")


@fleet.callback()
def _group() -> None:
    """Keeps `up` a word of its own."""


@fleet.command()
def up(
    file: Annotated[Path, typer.Argument(help="The fleet file; a change of it scales the fleet.")],
    ray: Annotated[str, typer.Option(help="The Ray cluster's address.")] = "auto",
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the commands for each host instead; so without Ray.")
    ] = False,
) -> None:
    """Place engines on a Ray cluster, keep them running, route in front. Without Ray: print what to start where."""
    from perilune.deploy.fleet.file import FleetFile, load_fleet
    from perilune.deploy.fleet.ray_nodes import RayNodes, ray_is_there
    from perilune.deploy.fleet.up import print_commands
    from perilune.deploy.fleet.up import up as run

    wanted = load_fleet(file)
    if print_only or not ray_is_there():
        if not print_only:
            typer.echo("Ray is not installed here (pip install 'perilune[ray]'): start these by hand.", err=True)
        raise typer.Exit(print_commands(wanted, typer.echo))

    def nodes(found: FleetFile) -> RayNodes:
        return RayNodes(found, ray)

    raise typer.Exit(run(file, nodes, lambda line: print(line, flush=True), wanted))
