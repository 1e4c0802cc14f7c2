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

On a GPU, where activations are bf16 and kernels keep what they hand to each other, `gpu_workspace` counts the bytes
that are alive at once in the widest layer; `tests/engine/test_workspace.py` holds it against every tensor of a step.
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
GPU_STRETCH = 4096  # tokens of context whose keys and values prefill expands at a time
GPU_UNITS = 304  # compute units of the largest GPU known: decoding is split among them
GPU_ROWS = 64  # rows of logits at once, when a prompt's are wanted
GPU_BYTES = 256 * MIB  # the code of kernels, what graphs keep, what the allocator cannot use


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


def gpu_workspace(spec: ModelSpec, step_tokens: int = STEP_TOKENS) -> Workspace:
    """The same in a GPU's memory, of which its driver has taken its own share already."""
    blocks = [block for layer in spec.layers for block in (_gpu_mixer(layer.mixer), _gpu_ffn(layer.ffn, spec.hidden))]
    stream = 10 * spec.hidden  # two residual streams, a norm's output, a block's
    prefill = step_tokens * stream + max(block.fixed + step_tokens * block.each for block in blocks)
    per_sequence = stream + max(block.each + block.decoding for block in blocks) + 16 * spec.vocab
    step = GPU_BYTES + prefill + 6 * GPU_ROWS * spec.vocab
    return Workspace(step + step // 10, per_sequence)


@dataclass(frozen=True)
class _Block:
    """Bytes alive at once in one block of a layer: whatever runs, per token, and per sequence that decodes."""

    fixed: int
    each: int
    decoding: int = 0


def _gpu_mixer(mixer: KdaSpec | MlaSpec) -> _Block:
    """KDA: 30 H K for projections, convolved q, k, v, running decays (fp32), what the state meets and the output, and
    8 H C for three C x C matrices. MLA: queries, attention's sums in fp32 and in bf16; keys and values of a stretch;
    in decoding, sums of each split of the context over the latents, fp32."""
    if isinstance(mixer, KdaSpec):
        return _Block(0, 30 * mixer.width + 8 * mixer.heads * CHUNK)
    stretch = 2 * GPU_STRETCH * (mixer.cache_dim + mixer.heads * (mixer.nope_dim + mixer.v_dim))
    splits = 2 * GPU_UNITS * 16 * 4 * mixer.latent_rank  # programs of 16 heads each
    each = 4 * mixer.heads * mixer.qk_dim + 8 * mixer.heads * mixer.v_dim + 2 * mixer.cache_dim
    return _Block(max(stretch, splits), each, 8 * mixer.heads * mixer.cache_dim)


def _gpu_ffn(ffn: DenseSpec | MoeSpec, hidden: int) -> _Block:
    """What goes between the two products, in bf16; of experts also each one's output, fp32, and the sum."""
    if isinstance(ffn, DenseSpec):
        return _Block(0, 2 * ffn.width)
    each = ffn.top_k * (4 * hidden + 2 * ffn.width + 24) + 8 * hidden + 4 * ffn.experts + 2 * ffn.shared_width
    return _Block(0, each)


def _mixer(mixer: KdaSpec | MlaSpec) -> int:
    if isinstance(mixer, KdaSpec):
        return 12 * mixer.width + 4 * mixer.heads * CHUNK
    return mixer.heads * (3 * mixer.qk_dim + 3 * mixer.v_dim + 3 * SCORE_BLOCK)


def _ffn(ffn: DenseSpec | MoeSpec, hidden: int) -> int:
    if isinstance(ffn, DenseSpec):
        return 3 * ffn.width
    return 3 * max(ffn.width, ffn.shared_width) + 2 * hidden + 3 * ffn.experts
