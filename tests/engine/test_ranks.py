"""The processes of a tensor-parallel engine: whatever happens to one of them, every request ends and nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perilune import LLM, SamplingParams
from perilune.builtin import model_path
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.orders import Clear
from perilune.engine.ranks import Ranks
from perilune.errors import CheckpointError, ConfigError, EngineDeadError

PROMPT = [5, 6, 7]
LONG = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
SETTINGS = {"dtype": "float32", "max_context": 512, "max_running": 3, "threads": 1, "tp": 2}
SOON = 120.0


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(EngineConfig.of("builtin", **SETTINGS | settings))
    try:
        yield engine
    finally:
        await engine.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_gone(*pids: int) -> None:
    end = time.monotonic() + SOON
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < end, f"of {pids}, not all are gone"
        time.sleep(0.05)


async def refused(engine: AsyncEngine, reached: asyncio.Event) -> EngineDeadError:
    """The error that ends a request; `reached` once it has its first token."""
    try:
        async for _ in engine.generate(PROMPT, LONG):
            reached.set()
    except EngineDeadError as error:
        return error
    raise AssertionError("it was answered")


async def test_a_killed_rank_ends_the_engine_with_an_error_for_every_open_request() -> None:
    async with running() as engine, asyncio.timeout(SOON):
        [rank] = children(engine.process.pid)
        reached = [asyncio.Event() for _ in range(4)]  # one of them waits: three run at once
        requests = [asyncio.create_task(refused(engine, event)) for event in reached]
        await reached[0].wait()
        os.kill(rank, signal.SIGKILL)
        for request in requests:
            assert "Rank 1 of 2 ended. It stopped with signal 9" in str(await request)
        await engine.died.wait()
        wait_gone(engine.process.pid, rank)


async def test_a_killed_rank_is_noticed_while_nothing_runs() -> None:
    async with running() as engine, asyncio.timeout(SOON):
        [rank] = children(engine.process.pid)
        os.kill(rank, signal.SIGKILL)
        await engine.died.wait()
        assert "Rank 1 of 2 ended" in str(engine.death)
        wait_gone(engine.process.pid)


async def test_a_rank_that_hangs_ends_the_engine_when_patience_does() -> None:
    async with running(rank_seconds=5) as engine, asyncio.timeout(SOON):
        [rank] = children(engine.process.pid)
        reached = asyncio.Event()
        request = asyncio.create_task(refused(engine, reached))
        await reached.wait()
        os.kill(rank, signal.SIGSTOP)
        assert "did not answer within 5 s" in str(await request)
        wait_gone(engine.process.pid, rank)


async def test_ranks_end_with_an_engine_that_is_killed() -> None:
    async with running() as engine, asyncio.timeout(SOON):
        [rank] = children(engine.process.pid)
        engine.process.kill()
        await engine.died.wait()
        wait_gone(rank)


def test_closing_ends_the_ranks_and_a_new_engine_can_start() -> None:
    for _ in range(2):
        before = set(children(os.getpid()))
        with LLM("builtin", **SETTINGS) as llm:
            [rank] = set(children(os.getpid())) - before
            assert len(llm.generate(PROMPT, SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
        wait_gone(rank)


def test_a_dead_rank_ends_the_python_api_too_and_it_stays_ended() -> None:
    before = set(children(os.getpid()))
    with LLM("builtin", **SETTINGS) as llm:
        [rank] = set(children(os.getpid())) - before
        os.kill(rank, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(EngineDeadError, match="Rank 1 of 2 ended"):
                llm.generate(PROMPT, LONG)


def test_a_rank_that_ends_while_it_loads_is_an_error_and_not_a_wait() -> None:
    ranks = Ranks(EngineConfig.of("builtin", **SETTINGS), model_path())
    for child in children(os.getpid()):
        if b"perilune.engine.rank" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match="Rank 1 of 2 ended"):
        ranks.wait_loaded()
    assert not ranks.folder.exists()


def test_what_a_rank_cannot_load_is_said_in_its_words(tmp_path: Path) -> None:
    ranks = Ranks(EngineConfig.of("builtin", **SETTINGS), tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ranks.wait_loaded()
    ranks.close()


@pytest.mark.parametrize("settings", [{"tp": 1, "ep": True}, {"ep": 1}, {"tp": 0}, {"rank_seconds": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EngineConfig.of("builtin", **SETTINGS | settings)


def test_a_rank_that_fails_says_why_and_ends_the_engine() -> None:
    with LLM("builtin", **SETTINGS) as llm:
        llm._core.runner._ranks.tell(Clear(10**6))  # no such slot
        with pytest.raises(EngineDeadError, match=r"Rank 1 of 2 ended. It stopped with exit status 1: .*IndexError"):
            llm.generate(PROMPT, LONG)
