"""Requests whose grammar is being compiled, beside the step loop: a hard schema must not stall everybody's tokens."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from perilune.engine.messages import Submit
from perilune.engine.request import Grammar
from perilune.engine.sampler import Constraint
from perilune.errors import RequestError
from perilune.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from perilune.engine.grammar import GrammarCompiler

IDLE_WAIT_SECONDS = 0.02


class GrammarQueue:
    """One background thread that compiles; xgrammar is imported there, on the first constrained request."""

    def __init__(self, tokenizer: Tokenizer | None, vocab: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._vocab, self._stop_ids = tokenizer, vocab, stop_ids
        self._pool = ThreadPoolExecutor(1, "grammar")  # starts its thread with the first job
        self._compiler: GrammarCompiler | None = None
        self._jobs: dict[str, tuple[Submit, int, Future[Constraint]]] = {}

    @property
    def pending(self) -> int:
        return len(self._jobs)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._jobs

    def put(self, request: Submit, max_new: int) -> None:
        """Compile `request.params.grammar`. Raises RequestError if there is no tokenizer to spell tokens with."""
        grammar = request.params.grammar
        assert grammar is not None
        if self._tokenizer is None:
            raise RequestError(
                "Constrained output needs a tokenizer.", "This checkpoint has no tokenizer files.", param="grammar"
            )
        self._jobs[request.id] = (request, max_new, self._pool.submit(self._compile, self._tokenizer, grammar))

    def _compile(self, tokenizer: Tokenizer, grammar: Grammar) -> Constraint:
        from perilune.engine.grammar import GrammarCompiler

        if self._compiler is None:
            self._compiler = GrammarCompiler(tokenizer, self._vocab, self._stop_ids)
        return self._compiler.start(grammar)

    def cancel(self, request_id: str) -> Submit | None:
        """The request, if it was here."""
        job = self._jobs.pop(request_id, None)
        if job is None:
            return None
        job[2].cancel()
        return job[0]

    def collect(self, *, wait: bool) -> list[tuple[Submit, int, Constraint | Exception]]:
        """What is done: (request, its new-token limit, constraint or error). `wait` lingers a moment for the first."""
        if wait and self._jobs:
            _linger([job for _, _, job in self._jobs.values()])
        done = []
        for request_id, (request, max_new, job) in list(self._jobs.items()):
            if job.done():
                del self._jobs[request_id]
                error = job.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                done.append((request, max_new, job.result() if error is None else error))
        return done

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _linger(jobs: list[Future[Constraint]]) -> None:
    wait(jobs, timeout=IDLE_WAIT_SECONDS, return_when="FIRST_COMPLETED")
