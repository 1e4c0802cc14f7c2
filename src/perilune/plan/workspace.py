"""An estimate of the memory one step needs beside weights and cache. Imports no torch.

Per token of a step, in fp32: two residual streams, and the widest layer's intermediates. Counted per kind of layer:
  KDA    12 H K for q, k, v before and after the convolution, decay, gate, output and the chunk's U, W, R,
         plus 4 H C for its C x C matrices;
  MLA    H (3 (nope + rope) + 3 v) for queries, one expanded block of the context and the running output,
         plus 3 H x 256 for one block of scores;
  SwiGLU 3 x width; with experts, the router's scores and, at worst, every token at one expert.
Per running sequence: its row through the same layers, its logits and a copy the sampler works on. The two processes'
own libraries come on top (an engine that has imported torch 2.13 for CPU holds about 220 MiB before any weight). All
this is an estimate, since allocators keep freed blocks; the cache and the weights are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.models.spec import DenseSpec, KdaSpec, MlaSpec, ModelSpec, MoeSpec
from perilune.units import MIB

STEP_TOKENS = 512  # the engine's default prefill chunk
CHUNK = 64
SCORE_BLOCK = 256
PROCESS_BYTES = 384 * MIB
_FP32 = 4


@dataclass(frozen=True)
class Workspace:
    """`step_bytes` for the processes and one step, whatever runs, `sequence_bytes` more per running sequence."""

    step_bytes: int
    sequence_bytes: int

    def total(self, concurrency: int) -> int:
        return self.step_bytes + concurrency * self.sequence_bytes


def workspace(spec: ModelSpec, step_tokens: int = STEP_TOKENS) -> Workspace:
    """What a step of `step_tokens` prompt tokens and one token per running sequence may need, in bytes."""
    widest = max(max(_mixer(layer.mixer), _ffn(layer.ffn, spec.hidden)) for layer in spec.layers)
    per_token = (2 * spec.hidden + widest) * _FP32
    return Workspace(PROCESS_BYTES + step_tokens * per_token, per_token + 2 * spec.vocab * _FP32)


def _mixer(mixer: KdaSpec | MlaSpec) -> int:
    if isinstance(mixer, KdaSpec):
        return 12 * mixer.width + 4 * mixer.heads * CHUNK
    return mixer.heads * (3 * mixer.qk_dim + 3 * mixer.v_dim + 3 * SCORE_BLOCK)


def _ffn(ffn: DenseSpec | MoeSpec, hidden: int) -> int:
    if isinstance(ffn, DenseSpec):
        return 3 * ffn.width
    return 3 * max(ffn.width, ffn.shared_width) + 2 * hidden + 3 * ffn.experts
