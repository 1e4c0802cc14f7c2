"""`perilune route`: one OpenAI API in front of many engines."""

from __future__ import annotations

from typing import Annotated

import typer


def route(
    prefill: Annotated[list[str] | None, typer.Option(help="A prefill engine's URL; repeat for several.")] = None,
    decode: Annotated[list[str] | None, typer.Option(help="A decode engine's URL; repeat for several.")] = None,
    workers: Annotated[
        list[str] | None, typer.Option("--workers", "--worker", help="An engine that does both; repeat.")
    ] = None,
    workers_file: Annotated[
        str | None, typer.Option(help="YAML with lists prefill, decode, workers; read again when it changes.")
    ] = None,
    contract: Annotated[
        str, typer.Option(help="How engines hand over: perilune, vllm (NIXL), sglang; openai-plain does not.")
    ] = "perilune",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="PERILUNE_API_KEY", help="Asked of every request; repeat for several.")
    ] = None,
    worker_key: Annotated[
        str | None, typer.Option(envvar="PERILUNE_WORKER_KEY", help="Sent to engines, instead of the client's.")
    ] = None,
    pd_key_file: Annotated[str | None, typer.Option(help="The cluster's key; else PERILUNE_PD_KEY.")] = None,
    pd_stream: Annotated[
        bool, typer.Option("--pd-stream", help="Decode engines fetch pages while prefill still computes.")
    ] = False,
    remote_from: Annotated[int, typer.Option(min=0, help="Fewest uncached prompt tokens worth moving.")] = 1024,
    disturbance: Annotated[
        float, typer.Option(min=0, help="What reading costs those who decode there, as a share of the reading.")
    ] = 0.5,
    retries: Annotated[int, typer.Option(min=0, help="Other engines tried before the first token.")] = 2,
    max_open: Annotated[int, typer.Option(min=1, help="Open requests; more are turned away with 429.")] = 1024,
    first_token_seconds: Annotated[float, typer.Option(help="Longest wait for a stream's first token.")] = 600.0,
    stall_seconds: Annotated[float, typer.Option(help="Longest silence within a stream.")] = 120.0,
    request_seconds: Annotated[float, typer.Option(help="Longest wait for an answer in one piece.")] = 3600.0,
    wait_seconds: Annotated[float, typer.Option(min=0, help="Wait for an engine before 503.")] = 10.0,
    health_seconds: Annotated[float, typer.Option(help="Between two looks at an engine.")] = 1.0,
    max_body_bytes: Annotated[str, typer.Option(help="Largest request body, like 16MiB.")] = "16MiB",
    drain_seconds: Annotated[float, typer.Option(min=0, help="Time for open requests when stopped.")] = 30.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Answer / with a page to chat and watch.")] = True,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may use this router; repeat, * for all.")
    ] = None,
) -> None:
    """Serve many engines as one: choose by load, prefix and cost, hand prefill over to decode, try again elsewhere."""
    from perilune.router.config import RouterConfig, places
    from perilune.router.run import serve
    from perilune.units import parse_bytes

    config = RouterConfig(
        places=places(prefill or (), decode or (), workers or ()),
        workers_file=workers_file,
        contract=contract,  # type: ignore[arg-type]  # checked there
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        worker_key=worker_key,
        pd_key_file=pd_key_file,
        early=pd_stream,
        remote_from=remote_from,
        disturbance=disturbance,
        retries=retries,
        max_open=max_open,
        first_token_seconds=first_token_seconds,
        stall_seconds=stall_seconds,
        request_seconds=request_seconds,
        wait_seconds=wait_seconds,
        health_seconds=health_seconds,
        max_body_bytes=parse_bytes(max_body_bytes),
        drain_seconds=drain_seconds,
        page=page,
        allowed_origins=tuple(allow_origin or ()),
    )
    raise typer.Exit(serve(config))
