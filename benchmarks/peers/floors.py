"""What a row could reach at most: bytes over the read bandwidth, or operations over the fastest product.

A limit is no promise. Prefill counts every operation at the rate of the fastest product there is (int8 where the
processor has it), decode every byte once per step however many sequences share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from peers.workloads import Workload
from perilune.cache.geometry import CacheGeometry
from perilune.models.checkpoint import Checkpoint
from perilune.models.spec import ModelSpec, MoeSpec
from perilune.plan.parameters import Parameters, count_parameters
from perilune.plan.roofline import decode_flops, prefill_flops


class Ceilings(Protocol):
    """What was measured of a machine: GB/s, and operations per nanosecond of its fastest product."""

    @property
    def read(self) -> float: ...

    @property
    def fastest(self) -> float: ...


@dataclass(frozen=True)
class Floors:
    """A model's bytes and operations on one machine. `always` and `experts` are weight bytes, the embedding in neither.

    `chunk` is how many prompt tokens are computed at once.
    """

    spec: ModelSpec
    parameters: Parameters
    geometry: CacheGeometry
    always: int
    experts: int
    machine: Ceilings
    chunk: int

    @staticmethod
    def of(checkpoint: Checkpoint, machine: Ceilings, chunk: int) -> Floors:
        held = checkpoint.held("bfloat16", leave_embedding=True)
        experts = sum(entry.nbytes for entry in held if entry.stacked)
        always = sum(entry.nbytes for entry in held) - experts
        spec = checkpoint.spec
        geometry = CacheGeometry.of(spec, "bfloat16")
        return Floors(spec, count_parameters(spec), geometry, always, experts, machine, chunk)

    def limit(self, row: Workload) -> float:
        """The best value of `row`, in its unit."""
        return row.value(self._decode(row) if row.kind == "decode" else self._prefill(row))

    def memory(self, tokens: int) -> int:
        """Bytes that must be resident to serve one sequence of `tokens` tokens: weights but the embedding, of which a
        few rows are looked up, state, latents."""
        return self.always + self.experts + self.geometry.sequence_bytes(tokens)

    def _prefill(self, row: Workload) -> float:
        """Weights are read once per chunk, and a token of the prompt sees on average half of it and all before it."""
        seen = 2 * row.depth + row.tokens  # prefill_flops takes a whole prompt, of which a token sees half
        operations = row.tokens * prefill_flops(self.spec, self.parameters, seen) + 2 * self.parameters.head
        chunks = [min(self.chunk, row.tokens - first) for first in range(0, row.tokens, self.chunk)]
        read = sum(self.weights(tokens) for tokens in chunks)
        return max(operations / self.machine.fastest, read / self.machine.read) / 1e9

    def _decode(self, row: Workload) -> float:
        depth, n = row.depth + row.tokens // 2, row.sequences
        state = 2 * (self.geometry.state_bytes + self.geometry.conv_bytes)
        read = self.weights(n) + n * (state + depth * self.geometry.bytes_per_token)
        operations = n * decode_flops(self.spec, self.parameters, depth)
        return row.tokens * max(operations / self.machine.fastest, read / self.machine.read) / 1e9

    def weights(self, tokens: int) -> float:
        """Bytes that `tokens` tokens read together if routing is even: an expert is missed with (1 - k/E)^tokens."""
        moe = next(layer.ffn for layer in self.spec.layers if isinstance(layer.ffn, MoeSpec))
        return self.always + self.experts * (1 - (1 - moe.top_k / moe.experts) ** tokens)
