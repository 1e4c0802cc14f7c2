"""The shapes that kernels are measured at: Kimi-Linear-48B's, and some that an interpreter gets through."""

from __future__ import annotations

from dataclasses import dataclass

from perilune.ops.gpu.cases import FORMATS


@dataclass(frozen=True)
class Sizes:
    """`few` and `many` rows of products; `kda_tokens` of prefill, `kda_batches` of decoding; `latents`: (sequences,
    context) of MLA decoding, `prompts`: (new tokens, tokens before) of its prefill. `exports`: tokens between two."""

    hidden: int = 2304
    width: int = 1024
    experts: int = 256
    top_k: int = 8
    vocab: int = 163_840
    heads: int = 32
    dim: int = 128
    rank: int = 512
    rope: int = 64
    formats: tuple[str, ...] = FORMATS
    few: tuple[int, ...] = (1, 8, 32)
    many: tuple[int, ...] = (512, 8192)
    kda_tokens: tuple[int, ...] = (2048, 8192)
    kda_batches: tuple[int, ...] = (1, 8, 32, 64)
    latents: tuple[tuple[int, int], ...] = ((1, 4096), (1, 131_072), (1, 1_048_576), (8, 32_768), (32, 32_768))
    prompts: tuple[tuple[int, int], ...] = ((2048, 0), (8192, 24_576))
    exports: int = 1024


REAL = Sizes()
TINY = Sizes(
    hidden=64, width=32, experts=4, top_k=2, vocab=100, heads=1, dim=16, rank=32, rope=16, formats=("bf16", "int4-32"),
    few=(2,), many=(17,), kda_tokens=(70,), kda_batches=(2,), latents=((2, 70),), prompts=((5, 64),), exports=64,
)  # fmt: skip
