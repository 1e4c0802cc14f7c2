"""Two engines of this host, one answer: what handing a prompt over costs, and what streaming hides.

    python benchmarks/handover.py MODEL [--tokens 4096] [--transport local] [--repeats 3] [--moves N] [--dtype auto]

Prints time to first token from one engine alone, handed over whole, and streamed; how much of the latents had arrived
before the prompt was finished; and what the decode engine's other request does meanwhile. With `--moves` only how long
it takes to move the cache of one prompt, N times, which the prefill engine reads once; and what another request loses
by it, beside what it loses by a copy of as many bytes that this process makes: the share of memory no engine can keep.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import Borrow, Handover, Lend, SamplingParams
from perilune.engine.roles import RoleConfig
from perilune.pd.keys import KEY_VARIABLE

_SECONDS = "pd_transfer_seconds_total"
ONE = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


def _config(role: str, asked: argparse.Namespace) -> EngineConfig:
    pd = RoleConfig(role, transports=(asked.transport,), stream=True)
    return EngineConfig.of(
        asked.model, dtype=asked.dtype, max_context=asked.tokens + 2048, max_running=2, threads=1, pd=pd,
        prefix_cache=bool(asked.moves) and role == "prefill",
    )  # fmt: skip


async def _first(
    engine: AsyncEngine, prompt: Sequence[int], handover: Handover | None = None, tokens: int = 2
) -> tuple[float, str]:
    """Seconds to the first token, or to the ticket; the ticket."""
    started, seconds, ticket = time.perf_counter(), 0.0, ""
    async for delta in engine.generate(prompt, replace(ONE, max_tokens=tokens), handover=handover):
        seconds = seconds or time.perf_counter() - started
        ticket = delta.lent.ticket if delta.lent else ticket
        if handover is not None and delta.remote is False:
            raise SystemExit("the cache did not arrive")
    return seconds, ticket


async def _split(p: AsyncEngine, d: AsyncEngine, prompt: Sequence[int], *, early: bool) -> float:
    started = time.perf_counter()
    _, ticket = await _first(p, prompt, Lend(early))
    seconds = time.perf_counter() - started
    return seconds + (await _first(d, prompt, Borrow(ticket)))[0]


async def _moves(p: AsyncEngine, d: AsyncEngine, prompt: Sequence[int], count: int) -> None:
    """Prints the seconds from the second leg's arrival to the verdict that the bytes are valid; the first meets the
    other engine and is left out of the median. Then again beside another request, in turns with copies by this process,
    and what its tokens take meanwhile.
    """
    seconds, nbytes = [], 0
    for _ in range(count + 1):
        before = await d.stats()
        await _split(p, d, prompt, early=False)
        after = await d.stats()
        seconds.append(float(after[_SECONDS]) - float(before[_SECONDS]))
        nbytes = int(after["pd_received_bytes_total"]) - int(before["pd_received_bytes_total"])
    median = statistics.median(seconds[1:])
    print(f"{seconds[0] * 1e3:.1f} ms the first time, then {min(seconds[1:]) * 1e3:.1f} at best, {median * 1e3:.1f} ms")
    print(f"for {nbytes:,} bytes: {nbytes / median / 1e9:.2f} GB/s")
    stop, moved, copied = asyncio.Event(), list[Window](), list[Window]()
    decoding = asyncio.create_task(_tokens(d, prompt[:64], stop))
    source, target = (np.full(nbytes, value, np.uint8) for value in range(2))
    for _ in range(count):
        _, ticket = await _first(p, prompt, Lend())
        await asyncio.sleep(0.3)  # nothing but decoding
        began = time.perf_counter()
        await _first(d, prompt, Borrow(ticket), tokens=1)  # the first token comes along: no step of its own
        moved.append((began, time.perf_counter()))
        await asyncio.sleep(0.3)
        began = time.perf_counter()
        await asyncio.to_thread(np.copyto, target, source)
        copied.append((began, time.perf_counter()))
    await asyncio.sleep(0.3)
    stop.set()
    times = await decoding
    print(f"another request's tokens while a cache arrives: {_lost(times, moved)}")
    print(f"                 while this process copies it: {_lost(times, copied)}")


Window = tuple[float, float]


def _lost(times: Sequence[float], windows: Sequence[Window]) -> str:
    """What tokens that came at `times` took in `windows`, and in the quarter of a second before each."""
    gaps = list(pairwise(times))
    beside = [now - last for last, now in gaps if any(last < end and now > began for began, end in windows)]
    quiet = [now - last for last, now in gaps if any(began - 0.25 < last and now < began for began, _ in windows)]
    usual = statistics.mean(quiet)
    lost = (sum(beside) - usual * len(beside)) / len(windows)
    length = statistics.mean(end - began for began, end in windows)
    return f"{_ms(beside)} for {_ms(quiet)} before: {lost * 1e3:.1f} ms lost in each {length * 1e3:.1f}"


def _gap(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.mean(seconds) * 1e3:.2f} ms ({len(seconds)})"


async def _tokens(d: AsyncEngine, prompt: Sequence[int], stop: asyncio.Event) -> list[float]:
    """When each token of one more request came, until `stop`."""
    params, times = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True), list[float]()
    async for _ in d.generate(prompt, params):
        times.append(time.perf_counter())
        if stop.is_set():
            break
    return times


async def _measure(asked: argparse.Namespace) -> None:
    p, d = await asyncio.gather(AsyncEngine.start(_config("prefill", asked)), AsyncEngine.start(_config("both", asked)))
    for line in d.because:
        if "transport" in line:
            print(line)
    rng = [int(byte) for byte in os.urandom(asked.tokens)]
    prompt = [64 + value % 128 for value in rng]
    if asked.moves:
        await _moves(p, d, prompt, asked.moves)
        await asyncio.gather(p.close(), d.close())
        return
    names = {"alone": [], "whole": [], "streamed": []}  # type: dict[str, list[float]]
    for _ in range(asked.repeats):
        names["alone"].append((await _first(d, prompt))[0])
        names["whole"].append(await _split(p, d, prompt, early=False))
        before = await d.stats()
        names["streamed"].append(await _split(p, d, prompt, early=True))
        after = await d.stats()
    status = await d.status()
    assert status is not None
    latents = asked.tokens * status["cost"]["token_bytes"]
    early = int(after["pd_early_bytes_total"]) - int(before["pd_early_bytes_total"])
    for name, seconds in names.items():
        print(f"{name:<9}{statistics.median(seconds) * 1e3:9.1f} ms to the first token")
    print(f"{early / latents:.1%} of {latents:,} bytes of latents, and {status['cost']['state_bytes']:,} of state")
    mean = float(after[_SECONDS]) / float(after["pd_transfers_total"])
    print(f"{mean * 1e3:.1f} ms per transfer, streamed ones from their ticket on")
    quiet, busy = asyncio.Event(), asyncio.Event()
    decoding = asyncio.create_task(_tokens(d, prompt[:64], quiet))
    await asyncio.sleep(2)
    quiet.set()
    alone = _gap(await decoding)
    _, ticket = await _first(p, prompt, Lend())
    decoding = asyncio.create_task(_tokens(d, prompt[:64], busy))
    await asyncio.sleep(0.2)
    await _first(d, prompt, Borrow(ticket))
    busy.set()
    beside = _gap(await decoding)
    print(f"{alone * 1e3:.2f} ms per token of another request, {beside * 1e3:.2f} while a cache arrives")
    await asyncio.gather(p.close(), d.close())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--transport", default="local")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--moves", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(16))
    asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
