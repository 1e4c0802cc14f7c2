"""`perilune serve MODEL`: the OpenAI-compatible server. Flags carry vLLM's names where it has them."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or `builtin`.")],
    served_model_name: Annotated[list[str] | None, typer.Option(help="Name in requests; repeat for several.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="PERILUNE_API_KEY", help="Asked of every request; repeat for several.")
    ] = None,
    cache_isolation: Annotated[
        str, typer.Option(help="none, or key: no API key's request finds what another's left in the prefix cache.")
    ] = "none",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    max_context: Annotated[
        int | None, typer.Option("--max-context", "--max-model-len", help="Tokens of prompt and answer together.")
    ] = None,
    max_running: Annotated[int, typer.Option("--max-running", "--max-num-seqs", help="Sequences running at once.")] = 8,
    max_waiting: Annotated[int, typer.Option(help="Sequences queued before requests are turned away.")] = 1024,
    cache_bytes: Annotated[str | None, typer.Option(help="Most memory for the cache, like 4GiB.")] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Most prompt tokens per step; a multiple of 64.")] = 512,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Compute no prompt's beginning twice.",
        ),
    ] = True,
    snapshot_slots: Annotated[
        int | None, typer.Option(min=0, help="States kept beyond the running ones; `perilune plan` prices them.")
    ] = None,
    cache_host_bytes: Annotated[
        str | None, typer.Option(help="Host memory for what makes way in the cache, like 8GiB; for GPU engines.")
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Folder where beginnings of prompts outlive the process; private to the user.")
    ] = None,
    cache_disk_bytes: Annotated[str, typer.Option(help="Most bytes in --cache-dir, all models together.")] = "16GiB",
    threads: Annotated[int | None, typer.Option(help="Compute threads; one per physical core unless given.")] = None,
    kernels: Annotated[str, typer.Option(help="auto, or reference for plain torch.")] = "auto",
    weight_bits: Annotated[
        str, typer.Option(help="8 rounds dense weights to int8, but those of experts; auto is 16.")
    ] = "auto",
    tool_call_parser: Annotated[str | None, typer.Option(help="kimi_k2, glm47, none; by default the model's.")] = None,
    reasoning_parser: Annotated[str | None, typer.Option(help="kimi_k2, glm45, none; by default the model's.")] = None,
    enable_auto_tool_choice: Annotated[bool, typer.Option(hidden=True)] = True,
    max_body_bytes: Annotated[str, typer.Option(help="Largest request body, like 16MiB.")] = "16MiB",
    drain_seconds: Annotated[float, typer.Option(min=0, help="Time for open requests when stopped.")] = 30.0,
) -> None:
    """Serve a model over HTTP until stopped; exit status 1 if its engine process ends."""
    from perilune.engine.config import EngineConfig
    from perilune.server.config import ServerConfig
    from perilune.server.run import serve as run
    from perilune.units import parse_bytes

    engine = EngineConfig(
        model=model,
        dtype=dtype,
        max_context=max_context,
        max_running=max_running,
        max_waiting=max_waiting,
        cache_bytes=None if cache_bytes is None else parse_bytes(cache_bytes),
        prefill_chunk=prefill_chunk,
        threads=threads,
        prefix_cache=prefix_cache,
        snapshot_slots=snapshot_slots,
        kernels=kernels,
        cache_host_bytes=None if cache_host_bytes is None else parse_bytes(cache_host_bytes),
        weight_bits=weight_bits,
        cache_dir=cache_dir,
        cache_disk_bytes=parse_bytes(cache_disk_bytes),
    )
    server = ServerConfig(
        host=host,
        port=port,
        served_model_names=tuple(served_model_name or ()),
        api_keys=tuple(api_key or ()),
        cache_isolation=cache_isolation,
        # vLLM parses no tool calls unless asked to; here the model's own parser is the default.
        tool_parser=tool_call_parser if enable_auto_tool_choice else "none",
        reasoning_parser=reasoning_parser,
        max_body_bytes=parse_bytes(max_body_bytes),
        drain_seconds=drain_seconds,
    )
    raise typer.Exit(run(engine, server))
