"""`perilune smoke URL`: is a running server, of any make, alive and sane."""

from __future__ import annotations

from typing import Annotated

import typer


def smoke(
    url: Annotated[str, typer.Argument(help="Where the server is, like http://localhost:8000.")],
    api_key: Annotated[str | None, typer.Option(envvar="PERILUNE_API_KEY", help="Sent as a bearer token.")] = None,
    model: Annotated[str | None, typer.Option(help="The first the server lists, unless given.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest silence, in seconds.")] = 60.0,
) -> None:
    """Check the models list, a tiny answer and a stream; exit status 1 with the reason if one fails."""
    from rich.console import Console

    from perilune.server.smoke import Target
    from perilune.server.smoke import smoke as checks

    console = Console(highlight=False, soft_wrap=True)
    for passed in checks(Target(url, api_key=api_key, model=model, seconds=timeout)):
        console.print(f"[green]ok[/]  {passed.check:<18}", end="")
        console.print(passed.detail, markup=False)
