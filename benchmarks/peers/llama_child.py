"""llama.cpp behind the benchmark's commands, through its C interface; runs in the peer's environment.

Set to be as fast as it can be: native build, repacked weights, the attention that is faster for the row, unified cache
for one sequence and one stream per sequence for many. The clock sees `llama_decode` and its greedy sampler, and in
prefill not the filling of batches.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp as llama  # type: ignore[import-not-found]  # in the peer's environment alone
import numpy as np

from peers.protocol import serve
from peers.workloads import CONTEXT_MARGIN, base_tokens, random_tokens

CALL_TOKENS = 2048  # prompt tokens per call of llama_decode, its own default; it cuts them to `chunk`
BASE, WORK = 0, 1
GGML_LOG_LEVEL_ERROR = 4
FLASH = {"on": (True, True), "off": (False, False), "split": (False, True)}  # in prefill, in decode


@dataclass
class Deep:
    """A context for one sequence. Sequence BASE holds the base's first `depth` tokens, WORK goes on from there."""

    context: Any
    flash: bool
    depth: int = 0


class LlamaCpp:
    """A model and up to three contexts: one or two deep ones for a single sequence, a wide one for many.

    `flash` "split" computes prompts without flash attention and decodes with it, in a context each.
    """

    def __init__(
        self, model: str, threads: int, context: int, sequences: int, chunk: int, flash: str, mapped: bool
    ) -> None:
        llama.llama_log_set(_LOG, ctypes.c_void_p())
        parameters = llama.llama_model_default_params()
        parameters.load_mode = llama.LLAMA_LOAD_MODE_MMAP if mapped else llama.LLAMA_LOAD_MODE_NONE
        loaded = llama.llama_model_load_from_file(model.encode(), parameters)
        if not loaded:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._file = Path(model)
        self._model, self._threads, self._chunk, self._sequences = loaded, threads, chunk, sequences
        self._vocab: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
        self._sampler = llama.llama_sampler_init_greedy()
        self._batch = llama.llama_batch_init(CALL_TOKENS, 0, 1)
        in_prefill, in_decode = FLASH[flash]
        made = {f: Deep(self._make_context(context, 2, f, unified=True), f) for f in {in_prefill, in_decode}}
        self._prefill, self._decode = made[in_prefill], made[in_decode]
        self._wide: Any = None
        self.about = f"llama-cpp-python {llama.__version__}: {llama.llama_print_system_info().decode().strip()}"

    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        work = self._fork(self._prefill, depth)
        return self._prompt(self._prefill.context, random_tokens(seed, tokens, self._vocab), depth, work)

    def decode(self, tokens: int, depth: int, sequences: int, seed: int) -> float:
        openings = random_tokens(seed, sequences, self._vocab)
        if sequences == 1:
            work = self._fork(self._decode, depth)
            return self._steps(self._decode.context, tokens, openings, depth, [work])
        if depth:
            raise ValueError("many sequences are measured from an empty cache only")
        if self._wide is None:
            size = CONTEXT_MARGIN * self._sequences
            self._wide = self._make_context(size, self._sequences, True, unified=False)
        llama.llama_memory_clear(llama.llama_get_memory(self._wide), True)
        return self._steps(self._wide, tokens, openings, 0, range(sequences))

    def logits(self, tokens: list[int]) -> Any:
        work, context = self._fork(self._prefill, 0), self._prefill.context
        self._fill(tokens, range(len(tokens)), [work] * len(tokens), [True] * len(tokens))
        self._run(context)
        rows = [llama.llama_get_logits_ith(context, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self._vocab,)) for row in rows])

    def report(self) -> dict[str, Any]:
        return {}

    def _make_context(self, size: int, sequences: int, flash: bool, unified: bool) -> Any:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = size, sequences, unified
        parameters.n_batch, parameters.n_ubatch = CALL_TOKENS, self._chunk
        parameters.n_threads = parameters.n_threads_batch = self._threads
        on, off = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = on if flash else off
        made = llama.llama_init_from_model(self._model, parameters)
        if not made:
            raise RuntimeError(f"llama.cpp cannot make a context of {size} tokens for {sequences} sequences")
        return made

    def _fork(self, deep: Deep, depth: int) -> int:
        """The sequence to work in: it stands right after the base's first `depth` tokens."""
        memory = llama.llama_get_memory(deep.context)
        if not deep.depth or depth < deep.depth:
            llama.llama_memory_clear(memory, True)
            deep.depth = 0
        if not depth:
            return BASE
        llama.llama_memory_seq_rm(memory, WORK, -1, -1)
        if depth > deep.depth:
            self._deepen(deep, depth)
        llama.llama_memory_seq_cp(memory, BASE, WORK, -1, -1)
        return WORK

    def _deepen(self, deep: Deep, depth: int) -> None:
        """BASE gets `depth` tokens, from a file of an earlier run: computing them can take half an hour."""
        tokens = base_tokens(depth, self._vocab)
        how = "flash" if deep.flash else "plain"
        file = self._file.with_name(f"{self._file.stem}.{depth}-{how}-{llama.__version__}.state")
        if not file.is_file() or file.stat().st_mtime < self._file.stat().st_mtime:
            self._prompt(deep.context, tokens[deep.depth :], deep.depth, BASE)
            unfinished = file.with_suffix(".unfinished")
            ids = (llama.llama_token * depth)(*tokens)
            llama.llama_state_seq_save_file(deep.context, os.fsencode(unfinished), BASE, ids, depth)
            unfinished.replace(file)
        else:
            ids, count = (llama.llama_token * depth)(), ctypes.c_size_t()
            llama.llama_memory_seq_rm(llama.llama_get_memory(deep.context), BASE, -1, -1)
            path = os.fsencode(file)
            read = llama.llama_state_seq_load_file(deep.context, path, BASE, ids, depth, ctypes.byref(count))
            if not read or list(ids) != tokens:
                raise RuntimeError(f"{file} does not hold the state it was written for: delete it")
        deep.depth = depth

    def _prompt(self, context: Any, tokens: list[int], start: int, sequence: int) -> float:
        """Compute `tokens` and sample the next one; seconds."""
        seconds = 0.0
        for first in range(0, len(tokens), CALL_TOKENS):
            part = tokens[first : first + CALL_TOKENS]
            last = first + len(part) == len(tokens)
            wanted = [False] * (len(part) - 1) + [last]
            self._fill(part, range(start + first, start + first + len(part)), [sequence] * len(part), wanted)
            started = time.perf_counter()
            self._run(context)
            if last:
                llama.llama_sampler_sample(self._sampler, context, -1)
            seconds += time.perf_counter() - started
        return seconds

    def _steps(self, context: Any, steps: int, tokens: list[int], depth: int, sequences: Sequence[int]) -> float:
        """`steps` tokens for each sequence, after one step that nobody clocks."""
        wanted, started = [True] * len(tokens), 0.0
        for step in range(steps + 1):
            if step == 1:
                started = time.perf_counter()
            self._fill(tokens, [depth + step] * len(tokens), sequences, wanted)
            self._run(context)
            tokens = [llama.llama_sampler_sample(self._sampler, context, i) for i in range(len(tokens))]
        return time.perf_counter() - started

    def _fill(self, tokens: list[int], at: Sequence[int], sequences: Sequence[int], wanted: list[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, at[i], wanted[i]
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequences[i]

    def _run(self, context: Any) -> None:
        if status := llama.llama_decode(context, self._batch):
            raise RuntimeError(f"llama_decode returned {status}")


def _log(level: int, text: bytes, data: Any) -> None:
    """Errors only: it has hundreds of lines to say per load."""
    if level == GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


_LOG = llama.llama_log_callback(_log)  # llama.cpp keeps its address


if __name__ == "__main__":
    serve(LlamaCpp)
