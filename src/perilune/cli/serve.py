"""`perilune serve MODEL`: the OpenAI-compatible server. Flags carry vLLM's names where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _given(context: typer.Context, name: str) -> bool:
    """Whether the user set it: another engine's recipe has a default of its own."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def serve(
    context: typer.Context,
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
    device: Annotated[
        str, typer.Option(help="cpu, cuda (AMD's GPUs too), cuda:1 for the second, or auto: a GPU if torch has one.")
    ] = "cpu",
    eager: Annotated[
        bool, typer.Option("--eager", help="Record no decode steps; on a GPU, names the kernel that hangs.")
    ] = False,
    gpu_seconds: Annotated[int, typer.Option(min=1, help="On a GPU: how long it may leave a step unanswered.")] = 60,
    compile_seconds: Annotated[int, typer.Option(min=1, help="On a GPU: how long compiling a kernel may take.")] = 300,
    gpu_marks: Annotated[
        int, typer.Option(min=1, help="On a GPU: kernels of a step from mark to mark; 1 names exactly what hangs.")
    ] = 16,
    threads: Annotated[int | None, typer.Option(help="Compute threads; one per physical core unless given.")] = None,
    kernels: Annotated[str, typer.Option(help="auto, or reference for plain torch.")] = "auto",
    weight_bits: Annotated[
        str, typer.Option(help="8 rounds dense weights to int8, but those of experts; auto is 16.")
    ] = "auto",
    hold_embedding: Annotated[
        bool, typer.Option("--hold-embedding", help="On a CPU: keep the embedding in memory too, for a slow disk.")
    ] = False,
    tool_call_parser: Annotated[str | None, typer.Option(help="kimi_k2, glm47, none; by default the model's.")] = None,
    reasoning_parser: Annotated[str | None, typer.Option(help="kimi_k2, glm45, none; by default the model's.")] = None,
    enable_auto_tool_choice: Annotated[bool, typer.Option(hidden=True)] = True,
    max_body_bytes: Annotated[str, typer.Option(help="Largest request body, like 16MiB.")] = "16MiB",
    drain_seconds: Annotated[float, typer.Option(min=0, help="Time for open requests when stopped.")] = 30.0,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Answer / with a page to chat and watch.")] = True,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may use this server; repeat, * for all.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="prefill, decode or both, with a cluster key: caches are handed over; docs/pd.md."),
    ] = None,
    pd_key_file: Annotated[
        str | None, typer.Option(help="File with the cluster's key; or set PERILUNE_PD_KEY.")
    ] = None,
    pd_host: Annotated[str, typer.Option(help="Address hand-overs listen on.")] = "127.0.0.1",
    pd_port: Annotated[int, typer.Option(min=0, max=65535, help="Their control port; 0 takes a free one.")] = 0,
    pd_advertise: Annotated[str, typer.Option(help="Address other engines reach --pd-host by, if another.")] = "",
    pd_transports: Annotated[str, typer.Option(help="Tried in this order: nixl,local,tcp.")] = "nixl,local,tcp",
    pd_stream: Annotated[
        bool, typer.Option("--pd-stream", help="Give tickets early: pages are read while the prompt is computed.")
    ] = False,
    pd_fallback: Annotated[
        str, typer.Option(help="prefill or error: what becomes of a request whose cache does not arrive.")
    ] = "prefill",
    pd_lease_seconds: Annotated[float, typer.Option(min=1, help="How long a cache waits for a reader.")] = 30.0,
    engine: Annotated[
        str,
        typer.Option(help="perilune, or another installed engine by its recipe: vllm, llama.cpp, llama-cpp-python."),
    ] = "perilune",
    target: Annotated[str | None, typer.Option(help="Other engines: the recipe's host; else what this is.")] = None,
    tp: Annotated[
        int | None,
        typer.Option("--tp", "--tensor-parallel-size", min=1, help="Processes, or GPUs, that share the model."),
    ] = None,
    ep: Annotated[
        bool,
        typer.Option("--ep", "--enable-expert-parallel", help="With --tp: experts are shared whole."),
    ] = False,
    rank_seconds: Annotated[int, typer.Option(min=1, help="With --tp: how long one may keep others waiting.")] = 120,
    options: Annotated[list[str] | None, typer.Option("--with", help="Other engines: an option of the recipe.")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="Other engines: one more word; repeat.")] = None,
    engine_env: Annotated[list[str] | None, typer.Option(help="Other engines: NAME=VALUE; repeat.")] = None,
    engine_program: Annotated[str | None, typer.Option(help="Other engines: the program, if not on PATH.")] = None,
    engine_log: Annotated[Path, typer.Option(help="Other engines: where their output goes.")] = Path("engine.log"),
    ready_seconds: Annotated[float, typer.Option(min=1, help="Other engines: time until they answer.")] = 3600.0,
    force: Annotated[bool, typer.Option("--force", help="Other engines: start what plan or rules refuse.")] = False,
) -> None:
    """Serve a model over HTTP until stopped; exit status 1 if its engine process ends."""
    from perilune.deploy.serving import refuse_foreign

    refuse_foreign(engine, [name for name in context.params if _given(context, name)])
    if engine != "perilune":
        from perilune.deploy.child import Watch
        from perilune.deploy.launch import Asked, variables_of
        from perilune.deploy.serving import Serving
        from perilune.deploy.serving import serve as run_other

        wanted = Serving(
            model=model,
            engine=engine,
            target=target,
            address=host,
            port=port,
            context=max_context,
            concurrency=context.params["max_running"] if _given(context, "max_running") else None,
            tp=tp,
            served_name=served_model_name[0] if served_model_name else None,
            program=engine_program,
            asked=Asked(tuple(options or ()), tuple(engine_arg or ()), variables_of(engine_env or ())),
            force=force,
        )
        watch = Watch(engine_log, ready_seconds, drain_seconds)
        raise typer.Exit(run_other(wanted, watch, lambda line: print(line, flush=True)))
    from perilune.engine.config import EngineConfig
    from perilune.engine.roles import role_config
    from perilune.server.config import ServerConfig
    from perilune.server.run import serve as run
    from perilune.units import parse_bytes

    own = EngineConfig(
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
        device=device,
        eager=eager,
        gpu_seconds=gpu_seconds,
        compile_seconds=compile_seconds,
        gpu_marks=gpu_marks,
        kernels=kernels,
        weight_bits=weight_bits,
        hold_embedding=hold_embedding,
        cache_host_bytes=None if cache_host_bytes is None else parse_bytes(cache_host_bytes),
        cache_dir=cache_dir,
        cache_disk_bytes=parse_bytes(cache_disk_bytes),
        pd=role_config(
            role,
            host=pd_host,
            port=pd_port,
            advertise=pd_advertise,
            transports=tuple(pd_transports.split(",")),
            key_file=pd_key_file,
            stream=pd_stream,
            fallback=pd_fallback,
            lease_seconds=pd_lease_seconds,
        ),
        tp=tp or 1,
        ep=ep,
        rank_seconds=rank_seconds,
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
        page=page,
        allowed_origins=tuple(allow_origin or ()),
    )
    raise typer.Exit(run(own, server))
