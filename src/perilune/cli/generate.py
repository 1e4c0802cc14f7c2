"""`perilune generate MODEL PROMPT`: one answer on the terminal, without a server."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from perilune.cli.printing import print_answer
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import SamplingParams
from perilune.engine.session import Session


def generate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or `builtin`.")],
    prompt: Annotated[str, typer.Argument(help="Text; `-` reads standard input.")],
    chat: Annotated[bool, typer.Option(help="Wrap the prompt in the model's chat template.")] = True,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens that hold this much.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if torch has one.")] = "cpu",
    kernels: Annotated[str, typer.Option(help="auto, or reference for plain torch.")] = "auto",
    weight_bits: Annotated[
        str, typer.Option(help="8 rounds dense weights, but those of experts; auto is 16.")
    ] = "auto",
    hold_embedding: Annotated[
        bool, typer.Option("--hold-embedding", help="On a CPU: keep the embedding in memory too, for a slow disk.")
    ] = False,
    tp: Annotated[int, typer.Option("--tp", "--tensor-parallel-size", min=1, help="Processes that share it.")] = 1,
    ep: Annotated[bool, typer.Option("--ep", help="With --tp: experts are shared whole.")] = False,
) -> None:
    """Print one answer, and on stderr how fast it came."""
    config = EngineConfig(
        model,
        dtype=dtype,
        max_context=max_context,
        max_running=1,
        device=device,
        kernels=kernels,
        weight_bits=weight_bits,
        hold_embedding=hold_embedding,
        tp=tp,
        ep=ep,
    )
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    asyncio.run(_answer(config, params, sys.stdin.read() if prompt == "-" else prompt, chat))


async def _answer(config: EngineConfig, params: SamplingParams, text: str, chat: bool) -> None:
    engine = await AsyncEngine.start(config)
    try:
        await print_answer(Session(engine, chat=chat), text, params)
    finally:
        await engine.close()
