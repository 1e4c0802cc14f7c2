"""The Python API: one model in this process, called synchronously."""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.output import AnswerStream
from perilune.engine.request import Completion, PromptLogprobs, SamplingParams, TokenLogprobs
from perilune.errors import PeriluneError, RequestError
from perilune.models.hub import resolve

Prompt = str | Sequence[int]


class LLM:
    """`LLM("path-or-hub-id", dtype="float32", max_context=8192, max_running=8)`; settings are EngineConfig's.

    Raises ConfigError, ModelNotFoundError or CheckpointError if the model cannot be served. Calls from several
    threads take turns.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        config = EngineConfig.of(str(model), **settings)
        self._core = EngineCore(config, resolve(config.model))
        self._lock = threading.Lock()
        self._closed = False

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Answers in the order of the prompts; with n > 1, the n answers of a prompt stand side by side.

        A prompt is a text or a list of token ids. One SamplingParams serves all, or give one each.
        Raises RequestError or ContextLengthError before anything runs.
        """
        batch = _as_batch(prompts)
        each = self._params_for(batch, params)
        ids = [self._encode(prompt) for prompt in batch]
        requests = [
            Submit(f"{number}/{index}", prompt, p, seed, index)
            for number, (prompt, p) in enumerate(zip(ids, each, strict=True))
            for seed in [p.seed if p.seed is not None else secrets.randbits(63)]
            for index in range(p.n)
        ]
        for request in requests:
            self._core.limits.check(request.prompt, request.params)
        with self._lock:
            self._require_open()
            return self._run(requests)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [T, vocab] of a prompt, computed in one pass."""
        with self._lock:
            self._require_open()
            return self._core.logits(_ids(tokens)).clone()

    def stats(self) -> dict[str, int | float | str]:
        """Cache bytes planned, allocated and used, pages, slots, running, waiting, totals."""
        self._require_open()
        return self._core.stats()

    def close(self) -> None:
        """Give the memory back. Calling it twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._core.close()
                del self._core.runner

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, requests: list[Submit]) -> list[Completion]:
        answers = {r.id: _Answer(self._core, r) for r in requests}
        queue, opened = list(reversed(requests)), set[str]()
        try:
            while queue or opened:
                while queue and len(opened) < self._core.config.max_waiting:
                    request = queue.pop()
                    self._core.add(request)
                    opened.add(request.id)
                for event in self._core.step():
                    if answers[event.id].push(event):
                        opened.discard(event.id)
        finally:
            for request_id in opened:
                self._core.abort(request_id)
        return [answers[r.id].completion() for r in requests]

    def _params_for(
        self, batch: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * len(batch)
        if len(params) != len(batch):
            raise RequestError(
                f"{len(batch)} prompts but {len(params)} SamplingParams.", "Give one, or one per prompt."
            )
        return list(params)

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return _ids(prompt)
        if self._core.tokenizer is None:
            raise RequestError("This checkpoint has no tokenizer files.", "Text cannot be encoded.", "Give token ids.")
        return (*self._core.tokenizer.opening_ids, *self._core.tokenizer.encode(prompt))

    def _require_open(self) -> None:
        if self._closed:
            raise PeriluneError("This LLM is closed.", fix="Make a new one.")


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One text or one list of ids is a batch of one; numpy's and torch's arrays count as lists."""
    if isinstance(prompts, str):
        return [prompts]
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if len(prompts) and all(isinstance(p, Integral) for p in prompts):
        return [_ids(prompts)]
    batch: list[Prompt] = []
    for prompt in prompts:
        if isinstance(prompt, Integral):
            raise RequestError("A token id stands between whole prompts.", "", "Put ids in a list of their own.")
        batch.append(prompt)  # type: ignore[arg-type]  # Integral is not int to mypy
    return batch


def _ids(prompt: Any) -> tuple[int, ...]:
    """Token ids from any sequence of whole numbers, numpy's and torch's too. Raises RequestError."""
    try:
        return tuple(operator.index(token) for token in prompt)
    except TypeError as error:
        raise RequestError(
            "A prompt is neither a text nor a list of token ids.", f"{error}.", param="prompt"
        ) from error


class _Answer:
    """Collects one sequence's deltas."""

    def __init__(self, core: EngineCore, request: Submit) -> None:
        self._core, self._request = core, request
        self._stream = AnswerStream(core.tokenizer, request.params, len(request.prompt), request.stream)
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt: list[PromptLogprobs | None] | None = None
        self._last: TokenEvent | None = None
        self._ending: tuple[Any, int | str | None] = (None, None)

    def push(self, event: TokenEvent) -> bool:
        """True when the sequence is done. Raises the error that ended it."""
        if event.error is not None:
            raise event.error.error()
        delta = self._stream.push(event)
        self._text.append(delta.text)
        self._ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs or ())
        if delta.prompt_logprobs is not None:
            self._prompt = list(delta.prompt_logprobs)
        if delta.finish_reason is None:
            return False
        self._last, self._ending = event, (delta.finish_reason, delta.stop_reason)
        if event.finish_reason is None:
            self._core.abort(event.id)  # a stop string, which only this side knows of
        return True

    def completion(self) -> Completion:
        assert self._last is not None
        finish, reason = self._ending
        return Completion(
            text="".join(self._text),
            token_ids=self._ids,
            logprobs=self._logprobs if self._request.params.logprobs is not None else None,
            finish_reason=finish,
            prompt_tokens=len(self._request.prompt),
            cached_tokens=self._last.cached_tokens,
            stop_reason=reason,
            prompt_logprobs=self._prompt,
        )
