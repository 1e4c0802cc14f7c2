"""Decode steps that are recorded once and replayed: a step's some hundred launches, or calls, then cost as much as one.

A recorded step reads and writes the same memory each time, so it has inputs of its own, which are filled before a
replay. On a GPU there is a graph for each of a few batch sizes, recorded at the start; rows that a batch does not fill
are padding: slot and page -1, which kernels leave alone, and a context of no tokens. On a processor there is a tape
(ops/tape.py) for every size, recorded when it first comes, and no padding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from perilune.cache.geometry import PAGE_TOKENS, pages_for
from perilune.nn.batch import Batch, Piece, Wave
from perilune.nn.decoder import Entry
from perilune.ops.native import Native
from perilune.ops.staging import Pinned
from perilune.ops.tape import Results, Tape

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Makes of a step one that can be repeated: it returns the same tensor each time, with other values."""

_TOKENS, _POSITIONS, _PAGES, _OFFSETS, _SLOTS, _LENGTHS = range(6)
_PADDING = (0, 0, -1, 0, -1, 0)


def decode_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes to record for up to `most` sequences: few rows cost what one does, so steps are coarse."""
    return tuple(sorted({*(size for size in (1, 2, 4) if size < most), *range(8, most, 8), most}))


def tape_sizes(most: int) -> tuple[int, ...]:
    """All that a tape may come to be recorded for: with more rows a step's calls are a small part of it."""
    return tuple(range(1, min(most, 64) + 1))


@dataclass(frozen=True)
class Parts:
    """A step, and its parts: what is torch's in any case, and what ops make of it."""

    enter: Callable[[], Entry]
    through: Callable[[Entry], Tensor]

    def __call__(self) -> Tensor:
        return self.through(self.enter())


def again(step: Step) -> Step:
    """Nothing is recorded: the step itself, run each time. What ranks on processors have instead of a graph."""
    return step


class GraphCapture:
    """Records CUDA or HIP graphs on `device`, which share memory for what lies between their first and last op.

    Exchanges between ranks are recorded like kernels. Other threads go on meanwhile: NCCL's asks for its events, tiers
    pin memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            out = step()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class TapeCapture:
    """Records tapes of the C++ kernels, which share memory for their results. A step is recorded the first time it is
    run; from then on only its entry is torch's."""

    def __init__(self, native: Native) -> None:
        self._native, self._results = native, Results()

    def __call__(self, step: Step) -> Step:
        assert isinstance(step, Parts)
        enter, through = step.enter, step.through
        recorded: tuple[Entry, Tensor, Tape] | None = None

        def taped() -> Tensor:
            nonlocal recorded
            entry = enter()
            if recorded is None:
                recorded = (entry, *self._native.record(lambda: through(entry), self._results))
                return recorded[1]
            first, out, tape = recorded
            for mine, value in zip(first.tensors, entry.tensors, strict=True):
                mine.copy_(value)
            tape.run()
            return out

        return taped


def capture_on(device: torch.device) -> Capture:
    """What records steps on `device`, where ranks may exchange something in them."""
    return GraphCapture(device) if device.type == "cuda" else again


class DecodeSteps:
    """Recorded steps of `sizes` sequences, one token each, of up to `context` tokens. `enter` and `through` are a
    decoder's, over the engine's caches."""

    def __init__(
        self,
        enter: Callable[[Batch], Entry],
        through: Callable[[Entry, Batch], Tensor],
        sizes: Sequence[int],
        context: int,
        device: torch.device,
        capture: Capture,
        lazy: bool = False,
    ) -> None:
        """Captures them, largest first, so that the others fit into its memory. Their kernels must be compiled, and
        each is run once before, unless `capture` is `lazy` and takes a step when it is run."""
        self._sizes, most = sorted(sizes), max(sizes) + max(sizes) % 2  # every row starts at 16 bytes
        self._filled = Pinned((len(_PADDING), most), torch.int64, device)
        self._inputs = self._filled.mirrored()
        self._tables = Pinned((most, pages_for(context)), torch.int64, device)
        self._table = self._tables.mirrored()
        self._sent: list[list[int]] = [[] for _ in range(most)]
        self._rows = torch.arange(most, device=device)
        self._fill([], most)
        self._steps: dict[int, Step] = {}
        for size in reversed(self._sizes):
            batch = self._batch(size)
            step = Parts(partial(enter, batch), lambda entry, batch=batch: through(entry, batch))  # type: ignore[misc]
            if not lazy:
                step()  # whatever happens only once, happens before it is recorded
            self._steps[size] = capture(step)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self._sizes)

    def take(self, pieces: Sequence[Piece]) -> bool:
        """Whether this is such a step."""
        return 0 < len(pieces) <= self._sizes[-1] and all(
            piece.mode == "decode" and len(piece.tokens) == 1 and piece.logits != "none" for piece in pieces
        )

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """[n, D] of the pieces in order, until the next step. Only if `take`."""
        size = self._sizes[bisect_left(self._sizes, len(pieces))]
        self._fill(pieces, size)
        return self._steps[size]()[: len(pieces)]

    def _fill(self, pieces: Sequence[Piece], size: int) -> None:
        """One copy for the integers of `size` rows, and one for each page table that has changed."""
        inputs, tables = self._filled, self._tables
        inputs.wait()
        columns = [
            (piece.tokens[0], piece.start, piece.pages[piece.start // PAGE_TOKENS], piece.start % PAGE_TOKENS,
             piece.slot, piece.start + 1)
            for piece in pieces
        ]  # fmt: skip
        columns += [_PADDING] * (size - len(columns))
        inputs.values[:, :size] = torch.tensor(columns, dtype=torch.int64).T
        inputs.send(self._inputs, inputs.values)
        changed = [(row, list(p.pages)) for row, p in enumerate(pieces) if self._sent[row] != list(p.pages)]
        if changed:
            tables.wait()
        for row, pages in changed:
            part = tables.values[row, : len(pages)]
            part.copy_(torch.tensor(pages, dtype=torch.int64))
            tables.send(self._table[row, : len(pages)], part)
            self._sent[row] = pages

    def _batch(self, size: int) -> Batch:
        inputs = [row[:size] for row in self._inputs]
        return Batch(
            tokens=inputs[_TOKENS],
            positions=inputs[_POSITIONS],
            page_ids=inputs[_PAGES],
            offsets=inputs[_OFFSETS],
            prefill=(),
            tables=self._table[:size],
            lengths=inputs[_LENGTHS],
            waves=(Wave(self._rows[:size], inputs[_SLOTS]),),
            logit_rows=None,
        )
