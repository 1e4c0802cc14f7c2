"""Two real engines in one process, one that reads prompts and one that answers, and what one alone would have said."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import Borrow, Handover, Lend, SamplingParams, TokenLogprobs
from perilune.engine.roles import RoleConfig
from perilune.pd.keys import KEY_VARIABLE

SECRET = "a key that only tests know"
SECONDS = 60.0
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=3)


def prompt_of(length: int, vocab: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return tuple(torch.randint(0, vocab - 12, (length,), generator=generator).tolist())


@dataclass
class Answer:
    """What one request has said so far. `remote` as in TokenEvent."""

    tokens: list[TokenLogprobs] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)

    @property
    def last(self) -> TokenEvent:
        return self.events[-1]

    @property
    def over(self) -> bool:
        return bool(self.events) and self.last.finish_reason is not None


class Engines:
    """Steps every engine in turn, proves their books after each step, and collects what they say."""

    def __init__(self, **cores: EngineCore) -> None:
        self.cores = cores
        self.answers: dict[str, Answer] = {}

    def turn(self, *names: str) -> None:
        """One step of each of these engines, of all unless some are named; waits a moment if there is none to take."""
        cores = [self.cores[name] for name in names or self.cores]
        if not any(core.busy for core in cores):
            select.select([core.handover.exchange for core in cores if core.handover], [], [], 0.02)
        for core in cores:
            for event in core.step():
                answer = self.answers.setdefault(event.id, Answer())
                answer.events.append(event)
                if event.token is not None:
                    answer.tokens.append(event.token)
            core.check()

    def until(self, done: Callable[[], bool], *names: str) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, f"it does not happen: {self.answers}"
            self.turn(*names)

    def add(self, engine: str, name: str, prompt: Sequence[int], params: SamplingParams, **more: Any) -> None:
        self.answers[name] = Answer()
        self.cores[engine].add(Submit(name, tuple(prompt), params, **{"seed": 7, **more}))

    def finish(self, name: str) -> Answer:
        """The whole answer, an error included."""
        self.until(lambda: self.answers[name].over)
        return self.answers[name]

    def alone(self, engine: str, name: str, prompt: Sequence[int], params: SamplingParams, **more: Any) -> Answer:
        self.add(engine, name, prompt, params, **more)
        return self.finish(name)

    def ticket(self, name: str, prompt: Sequence[int], params: SamplingParams, *, early: bool = False) -> str:
        """Leg 1, on `p`."""
        self.add("p", f"{name}/1", prompt, params, handover=Lend(early))
        self.until(lambda: self.answers[f"{name}/1"].over)
        lent = self.answers[f"{name}/1"].last.lent
        assert lent is not None, self.answers[f"{name}/1"]
        return lent.ticket

    def split(
        self, name: str, prompt: Sequence[int], params: SamplingParams, *, early: bool = False, fallback: Any = None
    ) -> Answer:
        """Both legs: read on `p`, answered on `d`, whose own seed must not matter."""
        ticket = self.ticket(name, prompt, params, early=early)
        self.add("d", name, prompt, params, seed=99, handover=Borrow(ticket, fallback))
        return self.finish(name)

    def idle(self) -> None:
        """Waits until nobody holds anything."""

        def held(core: EngineCore) -> int:
            return core.cache.holders

        self.until(lambda: not any(held(core) for core in self.cores.values()))
        for core in self.cores.values():
            stats = core.stats()
            assert (stats["pages_used"], stats["slots_used"], stats["running"], stats["waiting"]) == (0, 0, 0, 0)

    def close(self) -> None:
        for core in self.cores.values():
            core.close()


Make = Callable[..., EngineCore]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes engines on the fp32 path; closes them at the end. `pd` is a role, a RoleConfig, or None."""
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    made: list[EngineCore] = []

    def core(path: Path, pd: str | RoleConfig | None = None, **settings: Any) -> EngineCore:
        role = RoleConfig(pd, transports=("local", "tcp")) if isinstance(pd, str) else pd
        wanted = {"dtype": "float32", "max_context": 512, "max_running": 4} | settings
        made.append(EngineCore(EngineConfig.of(str(path), pd=role, **wanted), path))
        return made[-1]

    yield core
    for one in made:
        one.close()


def handed(answer: Answer) -> Handover | bool | None:
    """Whether the answer's cache came from afar."""
    return answer.events[0].remote
