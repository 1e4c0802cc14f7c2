"""perilune behind the benchmark's commands: the engine's own loop, in this process, as the server's engine runs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from peers.op_times import OpTimes
from peers.protocol import serve
from peers.workloads import base_tokens, random_tokens
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import SamplingParams


class Perilune:
    """Prefix cache and scheduler are at work: a deep base is computed once and found again, as in a conversation."""

    def __init__(
        self, model: str, threads: int, context: int, sequences: int, chunk: int, profile: bool, **more: Any
    ) -> None:
        sizes = {"max_context": context, "max_running": sequences, "prefill_chunk": chunk, "threads": threads}
        # clocks around ops see nothing of a recorded step
        config = EngineConfig(model, dtype="bfloat16", eager=profile, **sizes, **more)
        self._core = EngineCore(config, Path(model))
        self._context, self._vocab = context, self._core.spec.vocab
        self._requests = 0
        self._times = OpTimes.of(self._core.runner) if profile else None
        self.about = self._core.runner.selection.because

    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        """From submitting the request to its first token. A RuntimeError if the base was not found in the cache."""
        base = self._base(depth)
        name = self._add([*base, *random_tokens(seed, tokens, self._vocab)], new=1)
        started = time.perf_counter()
        event = self._until_first({name})[name]
        seconds = time.perf_counter() - started
        if event.cached_tokens != depth:
            raise RuntimeError(f"{event.cached_tokens} tokens came from the cache, not {depth}")
        return seconds

    def decode(self, tokens: int, depth: int, sequences: int, seed: int) -> float:
        """`tokens` steps, once every sequence has its first token."""
        base, openings = self._base(depth), random_tokens(seed, sequences, self._vocab)
        names = {self._add([*base, opening], new=self._context - depth - 2) for opening in openings}
        self._until_first(names)
        if self._times:
            self._times.take()
        started = time.perf_counter()
        counts = [len(self._step()) for _ in range(tokens)]
        seconds = time.perf_counter() - started
        for name in names:
            self._core.abort(name)
        if counts != [sequences] * tokens:
            raise RuntimeError(f"not every sequence got a token in every step: {counts}")
        return seconds

    def logits(self, tokens: list[int]) -> Any:
        return self._core.logits(tuple(tokens)).numpy()

    def report(self) -> dict[str, Any]:
        return {"ops": self._times.take()} if self._times else {}

    def _base(self, depth: int) -> list[int]:
        """The first `depth` tokens of the base; they are in the cache when this returns."""
        base = base_tokens(depth, self._vocab)
        if depth:
            self._until_first({self._add(base, new=1)})
        if self._times:
            self._times.take()
        return base

    def _add(self, prompt: list[int], new: int) -> str:
        self._requests += 1
        name = str(self._requests)
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        self._core.add(Submit(name, tuple(prompt), params, seed=0))
        return name

    def _until_first(self, names: set[str]) -> dict[str, TokenEvent]:
        """Step until each of `names` has a token; its first event."""
        first: dict[str, TokenEvent] = {}
        while names - first.keys():
            for event in self._step():
                first.setdefault(event.id, event)
        return first

    def _step(self) -> list[TokenEvent]:
        events = self._core.step()
        for event in events:
            if event.error is not None:
                raise event.error.error()
        return events


if __name__ == "__main__":
    serve(Perilune)
