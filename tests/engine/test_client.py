"""The engine in its own process: every open request gets an end, whatever happens to whom."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from perilune.builtin import model_path
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import Grammar, SamplingParams, TextDelta
from perilune.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    OverloadedError,
    RequestError,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [5, 6, 7]
LONG = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
MEDIUM = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
SOON = 20.0


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[AsyncEngine]:
    config = EngineConfig.of("builtin", **{"dtype": "float32", "max_context": 512, "threads": 1} | settings)
    engine = await AsyncEngine.start(config)
    try:
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[AsyncEngine]:
    """One process for every test that leaves it as it found it."""
    async with running(max_running=3, max_waiting=3) as started:
        yield started


async def collect(engine: AsyncEngine, params: SamplingParams, name: str | None = None) -> list[TextDelta]:
    return [delta async for delta in engine.generate(PROMPT, params, name)]


async def idle(engine: AsyncEngine) -> None:
    """Until nothing is in use; fails after SOON seconds."""
    async with asyncio.timeout(SOON):
        while True:
            stats = await engine.stats()
            if not any(stats[key] for key in ("pages_used", "slots_used", "running", "waiting", "cache_bytes_used")):
                return
            await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be reaped by an init that may never do so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)


# --- answers -----------------------------------------------------------------------------------------------------


async def test_an_answer_comes_token_by_token_and_ends_once(engine: AsyncEngine) -> None:
    deltas = await collect(engine, SHORT)
    assert [delta.completion_tokens for delta in deltas] == [1, 2, 3, 4, 5]
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["length"]
    assert {delta.prompt_tokens for delta in deltas} == {3}
    assert deltas == await collect(engine, SHORT)


async def test_the_sequences_of_a_request_are_told_apart(engine: AsyncEngine) -> None:
    params = SamplingParams(n=3, max_tokens=4, temperature=2.0, seed=1, ignore_eos=True)
    answers: dict[int, list[int]] = {}
    for delta in await collect(engine, params):
        answers.setdefault(delta.index, []).extend(delta.token_ids)
    assert sorted(answers) == [0, 1, 2]
    assert all(len(tokens) == 4 for tokens in answers.values())
    assert len({tuple(tokens) for tokens in answers.values()}) == 3
    alone = await collect(engine, SamplingParams(max_tokens=4, temperature=2.0, seed=1, ignore_eos=True))
    assert [delta.token_ids[0] for delta in alone] == answers[0]


async def test_a_stop_string_ends_the_answer_in_the_engine_too(engine: AsyncEngine) -> None:
    text = "".join(delta.text for delta in await collect(engine, SamplingParams(max_tokens=30, temperature=0)))
    stop = text[2:4]
    params = SamplingParams(max_tokens=400, temperature=0, stop=stop)
    deltas = await collect(engine, params)
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
    await idle(engine)


async def test_what_cannot_be_is_refused_before_the_first_delta(engine: AsyncEngine) -> None:
    for prompt, error in (([], RequestError), ([10**6], RequestError), ([1] * 512, ContextLengthError)):
        with pytest.raises(error):
            await anext(engine.generate(prompt, SHORT))


async def test_an_error_of_one_request_crosses_typed_and_hits_nobody_else(engine: AsyncEngine) -> None:
    other = asyncio.create_task(collect(engine, MEDIUM))
    with pytest.raises(RequestError, match="does not compile") as caught:
        await collect(engine, SamplingParams(grammar=Grammar("regex", "((")))
    assert caught.value.param == "grammar"
    assert (await other)[-1].finish_reason == "length"


# --- aborts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deltas", [0, 1, 2, 7])
async def test_closing_the_iterator_at_any_moment_frees_everything(engine: AsyncEngine, deltas: int) -> None:
    params = SamplingParams(n=2, max_tokens=400, ignore_eos=True, seed=0)
    async with aclosing(engine.generate(PROMPT, params)) as stream:
        for _ in range(deltas):
            await anext(stream)
    await idle(engine)
    assert (await collect(engine, SHORT))[-1].finish_reason == "length"


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.1])
async def test_cancelling_the_reader_frees_everything(engine: AsyncEngine, seconds: float) -> None:
    task = asyncio.create_task(collect(engine, LONG))
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(engine)


async def test_a_name_in_use_is_refused_and_the_first_goes_on(engine: AsyncEngine) -> None:
    async with aclosing(engine.generate(PROMPT, LONG, "mine")) as first:
        await anext(first)
        with pytest.raises(RequestError, match="'mine'") as caught:
            await collect(engine, SHORT, "mine")
        assert caught.value.param == "request_id"
        assert (await anext(first)).completion_tokens == 2
    # its name is free at once, and no late token of the old request shows in the new one
    assert await collect(engine, SHORT, "mine") == await collect(engine, SHORT)
    await idle(engine)


async def test_a_full_queue_is_overloaded_until_somebody_leaves(engine: AsyncEngine) -> None:
    open_streams = [engine.generate(PROMPT, MEDIUM) for _ in range(6)]
    readers = [asyncio.create_task(anext(stream)) for stream in open_streams]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="--max-waiting"):
        await collect(engine, SHORT)
    await readers[0]
    await open_streams[0].aclose()
    assert (await collect(engine, SHORT))[-1].finish_reason == "length"
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for stream in open_streams:
        await stream.aclose()
    await idle(engine)


# --- ends --------------------------------------------------------------------------------------------------------


async def test_a_killed_process_ends_every_wait_with_the_reason() -> None:
    async with running(max_running=2) as engine:
        open_requests = [asyncio.create_task(collect(engine, LONG)) for _ in range(4)]
        await asyncio.sleep(0.2)
        os.kill(engine.process.pid, signal.SIGKILL)
        wait_gone(engine.process.pid)
        # nobody has noticed yet: what comes now must not wait for ever on a socket without a peer
        assert engine.alive
        late = [asyncio.create_task(collect(engine, SHORT)), asyncio.create_task(engine.stats())]
        async with asyncio.timeout(SOON):
            ends = await asyncio.gather(*open_requests, *late, return_exceptions=True)
        assert [type(end) for end in ends] == [EngineDeadError] * 6
        assert "signal 9" in str(ends[0])
        assert engine.died.is_set()
        assert not engine.alive
        for call in (collect(engine, SHORT), engine.stats()):
            with pytest.raises(EngineDeadError):
                await call
        async with asyncio.timeout(SOON):
            await engine.close()


async def test_closing_while_requests_are_open_ends_them_and_the_process() -> None:
    async with running(max_running=1) as engine:
        streams = [engine.generate(PROMPT, LONG) for _ in range(3)]
        await anext(streams[0])
        readers = [asyncio.create_task(anext(stream)) for stream in streams[1:]]
        await asyncio.sleep(0)
        async with asyncio.timeout(SOON):
            await engine.close()
        assert engine.process.returncode is not None
        for result in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(result, EngineDeadError)
        with pytest.raises(EngineDeadError, match="shutting down"):
            async for _ in streams[0]:
                pass
        with pytest.raises(EngineDeadError):
            await collect(engine, SHORT)
        assert not Path(engine._folder).exists()


async def test_a_broken_checkpoint_is_the_error_of_start(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_path(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        await AsyncEngine.start(EngineConfig(str(folder)))


async def test_what_only_the_process_finds_is_the_error_of_start_too() -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        async with running(max_running=10**9):
            pass


async def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []
    spawn = AsyncEngine._spawn

    async def noted(self: AsyncEngine) -> None:
        await spawn(self)
        pids.append(self.process.pid)

    monkeypatch.setattr(AsyncEngine, "_spawn", noted)
    start = asyncio.create_task(AsyncEngine.start(EngineConfig("builtin")))
    async with asyncio.timeout(SOON):
        while not pids:
            await asyncio.sleep(0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    assert gone(pids[0])


SERVER = """
import asyncio, sys
from perilune.builtin import model_path
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig

async def main():
    engine = AsyncEngine(EngineConfig("builtin"), model_path())
    await engine._spawn()
    if sys.argv[1] == "serving":
        await engine._ready
    print(engine.process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["loading", "serving"])
async def test_the_process_ends_when_its_server_is_killed(moment: str) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, moment], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        worker = int(await asyncio.to_thread(server.stdout.readline))
        assert not gone(worker)
    finally:
        server.kill()
        server.wait()
    await asyncio.to_thread(wait_gone, worker)
