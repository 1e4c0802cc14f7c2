"""A prefill and a decode engine as processes, small pools, many requests at once, and everything that can go wrong.

A request ends well if its tokens and log probabilities are those of one engine alone, or with an explicit error.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from split_world import GREEDY, Engines, prompt_of

from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import Borrow, Handover, Lend, SamplingParams, TokenLogprobs
from perilune.engine.roles import RoleConfig
from perilune.errors import EngineDeadError, PeriluneError

LENGTHS = (1, 30, 63, 64, 65, 100, 128, 150, 190)
SAMPLED = SamplingParams(max_tokens=6, temperature=0.8, top_p=0.9, seed=11, ignore_eos=True, logprobs=2)
AT_ONCE = 8
SECONDS = 120.0


class SoakEngine(AsyncEngine):
    worker = "soak_worker"


@dataclass(frozen=True)
class Question:
    """`answer`: what one engine alone says."""

    prompt: tuple[int, ...]
    params: SamplingParams
    answer: list[TokenLogprobs]


@dataclass
class Side:
    """One engine, started anew whenever it has died. `handles` were open when its process began."""

    role: str
    path: Path
    cache_bytes: int
    engine: SoakEngine | None = None
    handles: int = 0
    starts: int = 0

    async def start(self) -> None:
        pd = RoleConfig(
            self.role, transports=("local", "tcp") if self.role == "decode" else ("tcp", "local"), stream=True,
            lease_seconds=2.0,
        )  # fmt: skip
        config = EngineConfig.of(
            str(self.path), dtype="float32", max_context=256, max_running=4, prefill_chunk=64, threads=1, pd=pd,
            cache_bytes=self.cache_bytes,
        )  # fmt: skip
        self.engine = await SoakEngine.start(config)
        self.handles, self.starts = self.open_handles(), self.starts + 1

    async def alive(self) -> SoakEngine:
        """The engine, once there is one."""
        while self.engine is None or not self.engine.alive:
            await asyncio.sleep(0.02)
        return self.engine

    def kill(self, number: int) -> None:
        if self.engine is not None and self.engine.alive:
            os.kill(self.engine.process.pid, number)

    async def watch(self) -> None:
        """Puts a new engine in the place of one that died."""
        while True:
            engine = self.engine
            assert engine is not None
            await engine.died.wait()
            self.engine = None
            await engine.close()
            await self.start()

    def open_handles(self) -> int:
        assert self.engine is not None
        return len(os.listdir(f"/proc/{self.engine.process.pid}/fd"))


class Soak:
    """`sizes`: bytes of cache of the prefill and of the decode engine."""

    def __init__(self, path: Path, sizes: tuple[int, int], questions: list[Question], seed: int) -> None:
        self.random, self.questions = random.Random(seed), questions
        self.p, self.d = Side("prefill", path, sizes[0]), Side("decode", path, sizes[1])
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, requests: int, faults: int) -> None:
        """`requests` of them, `faults` spread among them; then both engines must come to rest with nothing held."""
        await asyncio.gather(self.p.start(), self.d.start())
        watching = [asyncio.create_task(side.watch()) for side in (self.p, self.d)]
        try:
            every = max(1, requests // (faults + 1))
            waiting = asyncio.Semaphore(AT_ONCE)
            tasks: list[asyncio.Task[None]] = []
            for number in range(requests):
                await waiting.acquire()
                if number and number % every == 0:
                    tasks.append(asyncio.create_task(self._fault(number // every)))
                task = asyncio.create_task(self._request(number))
                task.add_done_callback(lambda _: waiting.release())
                tasks.append(task)
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*tasks)
                await self._rest()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            for side in (self.p, self.d):
                if side.engine is not None:
                    await side.engine.close()

    async def _fault(self, number: int) -> None:
        """In turn: a link cut, a stop short and long, on either side, and now and then a death."""
        side = (self.p, self.d)[number % 2]
        kind = ("cut", "stop", "cut", "kill", "hang", "stop")[number // 2 % 6]
        self.outcomes[f"fault {kind} {side.role}"] += 1
        if kind == "cut":
            side.kill(signal.SIGUSR1)
        elif kind == "kill":
            side.kill(signal.SIGKILL)
        else:
            side.kill(signal.SIGSTOP)
            await asyncio.sleep(0.3 if kind == "stop" else 3.0)  # the latter is longer than a lease
            side.kill(signal.SIGCONT)

    async def _request(self, number: int) -> None:
        question = self.random.choice(self.questions)
        leave = self.random.choice(("leg 1", "between", "leg 2", "stream")) if self.random.random() < 0.1 else ""
        early, fallback = self.random.random() < 0.5, self.random.choice(("prefill", "prefill", "error"))
        patience = self.random.random() * 0.05
        said: list[TokenLogprobs] = []
        try:
            lend = Lend(early)
            lent = await self._leave(self._ask(self.p, question, lend, []), patience if leave == "leg 1" else None)
            if leave == "between":
                self.outcomes["left"] += 1
                return
            borrow = Borrow(lent, fallback)  # type: ignore[arg-type]
            answer = self._ask(self.d, question, borrow, said, 2 if leave == "stream" else None)
            await self._leave(answer, patience if leave == "leg 2" else None)
            outcome = "left" if leave == "stream" else "answered"
        except TimeoutError:
            outcome = "left"
        except EngineDeadError:
            outcome = "engine died"
        except PeriluneError as error:
            outcome = error.code
        self.outcomes[outcome] += 1
        whole = question.answer
        if said != whole[: len(said)] or (outcome == "answered" and len(said) != len(whole)):
            self.wrong.append(f"request {number}, {outcome}: {said} instead of {whole}")

    @staticmethod
    async def _leave(work: Awaitable[str], seconds: float | None) -> str:
        return await asyncio.wait_for(work, seconds)

    async def _ask(
        self, side: Side, question: Question, handover: Handover, said: list[TokenLogprobs], most: int | None = None
    ) -> str:
        """The ticket of leg 1; of leg 2 what was `said`, up to `most` tokens."""
        engine, ticket = await side.alive(), ""
        async with aclosing(engine.generate(question.prompt, question.params, handover=handover)) as deltas:
            async for delta in deltas:
                said += delta.logprobs or ()
                ticket = delta.lent.ticket if delta.lent else ticket
                if delta.remote is not None and len(delta.token_ids) and len(said) == 1:
                    self.outcomes["remote" if delta.remote else "local"] += 1
                if len(said) == most:
                    break
        return ticket

    async def _rest(self) -> None:
        for side, other in ((self.p, self.d), (self.d, self.p)):
            await self._settled(side)
            # what leads to engines that died is closed after a minute; a request leaves nothing
            assert side.open_handles() <= side.handles + 6 * other.starts, side.role

    async def _settled(self, side: Side) -> None:
        """No page, no slot, no lease, no reception, nothing in quarantine; every page is free or in the tree."""
        names = (
            "pages_used", "slots_used", "running", "waiting", "pd_leases", "pd_receptions", "pd_quarantined_pages",
        )  # fmt: skip
        while True:
            stats = await (await side.alive()).stats()
            if not any(stats[name] for name in names):
                return
            await asyncio.sleep(0.1)


def questions(alone: Engines) -> list[Question]:
    """Every length, greedy and drawn, answered by `both`."""
    found = []
    for number, length in enumerate(LENGTHS):
        for params, tokens in ((GREEDY, 5), (SAMPLED, 9)):
            prompt = prompt_of(length, alone.cores["both"].spec.vocab, number)
            asked = replace(params, max_tokens=tokens)
            answer = alone.alone("both", f"{length} {tokens}", prompt, asked, seed=asked.seed or 0).tokens
            found.append(Question(prompt, asked, answer))
    return found
