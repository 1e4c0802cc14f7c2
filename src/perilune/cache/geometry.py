"""How many bytes a model remembers, and where each byte lies. Imports no torch.

Two kinds of memory. A page holds 64 tokens of MLA latents, page-major: `[MLA layer][64][R + rope]`. A slot holds one
sequence's KDA memory: first the recurrent state `[H][K][V]` of every KDA layer in fp32, then the convolution window
`[3][H][K][taps - 1]` of every KDA layer in the cache dtype (3 = q, k, v). Both are head-major, so that a
tensor-parallel share is a byte range. Every block of a slot starts on a 64-byte boundary, which is one cache line and
one 512-bit vector, and a slot's length is a multiple of 64; models with 128-wide heads need no padding at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perilune.errors import ConfigError, nearest
from perilune.models.spec import DTYPE_BYTES, KdaSpec, MlaSpec, ModelSpec

PAGE_TOKENS = 64
ALIGNMENT = 64
STATE_DTYPE = "float32"
CACHE_DTYPES = ("bfloat16", "float16", "float32")


def align(offset: int) -> int:
    """The next multiple of ALIGNMENT at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` tokens of one sequence: ceil(tokens / 64)."""
    return -(-tokens // PAGE_TOKENS)


@dataclass(frozen=True)
class LatentBlock:
    """One MLA layer's share of a page: `values` = R + rope per token. `layer` is the model's 0-based index."""

    layer: int
    values: int


@dataclass(frozen=True)
class StateBlock:
    """One KDA layer's share of a slot; offsets are bytes from the slot's start. `heads` are those of one rank."""

    layer: int
    heads: int
    head_dim: int
    carried_taps: int
    state_offset: int
    state_bytes: int
    conv_offset: int
    conv_bytes: int

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """[H, K, V]."""
        return (self.heads, self.head_dim, self.head_dim)

    @property
    def conv_shape(self) -> tuple[int, int, int, int]:
        """[3, H, K, taps - 1]; the first axis is q, k, v, the last runs from the oldest input to the newest."""
        return (3, self.heads, self.head_dim, self.carried_taps)


@dataclass(frozen=True)
class CacheGeometry:
    """Bytes of one rank's cache. A model without MLA has pages of 0 bytes, one without KDA slots of 0 bytes."""

    dtype: str
    tp: int
    latents: tuple[LatentBlock, ...]
    states: tuple[StateBlock, ...]
    slot_bytes: int

    @classmethod
    def of(cls, spec: ModelSpec, dtype: str, tp: int = 1) -> CacheGeometry:
        """The geometry of `spec` with latents and convolution windows in `dtype`, split over `tp` ranks.

        KDA heads are split; latents are not, since every head reads the whole latent.
        Raises ConfigError for a dtype that cannot hold a cache or a `tp` that does not divide the heads.
        """
        if dtype not in CACHE_DTYPES:
            raise ConfigError(f"{dtype!r} cannot hold a cache.", "", nearest(dtype, CACHE_DTYPES))
        if tp < 1:
            raise ConfigError(f"A tensor-parallel degree of {tp} is not possible.", "", "Use 1 or more ranks.")
        latents = tuple(
            LatentBlock(i, layer.mixer.cache_dim)
            for i, layer in enumerate(spec.layers)
            if isinstance(layer.mixer, MlaSpec)
        )
        kda = [(i, layer.mixer) for i, layer in enumerate(spec.layers) if isinstance(layer.mixer, KdaSpec)]
        states, slot_bytes = _lay_out(kda, DTYPE_BYTES[dtype], tp)
        return cls(dtype, tp, latents, states, slot_bytes)

    @property
    def value_bytes(self) -> int:
        """Bytes of one latent or convolution value."""
        return DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_token(self) -> int:
        """Latents of one token over all MLA layers: sum of (R + rope) x dtype bytes."""
        return sum(block.values for block in self.latents) * self.value_bytes

    @property
    def page_bytes(self) -> int:
        return self.bytes_per_token * PAGE_TOKENS

    @property
    def state_bytes(self) -> int:
        """Recurrent state of one sequence: layers x H x K x V x 4."""
        return sum(block.state_bytes for block in self.states)

    @property
    def conv_bytes(self) -> int:
        """Convolution windows of one sequence: layers x 3 x H x K x (taps - 1) x dtype bytes."""
        return sum(block.conv_bytes for block in self.states)

    @property
    def padding_bytes(self) -> int:
        """What alignment adds to one slot."""
        return self.slot_bytes - self.state_bytes - self.conv_bytes

    def sequence_bytes(self, tokens: int) -> int:
        """One sequence of `tokens` tokens: its whole pages and its slot."""
        return pages_for(tokens) * self.page_bytes + self.slot_bytes


def _lay_out(kda: list[tuple[int, KdaSpec]], value_bytes: int, tp: int) -> tuple[tuple[StateBlock, ...], int]:
    """The blocks of one slot (all states, then all windows) and the slot's length in bytes."""
    for layer, mixer in kda:
        if mixer.heads % tp:
            raise ConfigError(
                f"{tp} ranks cannot share the {mixer.heads} KDA heads of layer {layer}.",
                "Each rank holds the state of whole heads, the same number on each.",
                f"Choose a tensor-parallel degree that divides {mixer.heads}.",
            )
    states = [mixer.heads // tp * mixer.head_dim**2 * DTYPE_BYTES[STATE_DTYPE] for _, mixer in kda]
    convs = [math.prod((3, m.heads // tp, m.head_dim, m.carried_taps)) * value_bytes for _, m in kda]
    offsets, end = [], 0
    for size in (*states, *convs):
        offsets.append(end)
        end = align(end + size)
    blocks = tuple(
        StateBlock(
            layer, mixer.heads // tp, mixer.head_dim, mixer.carried_taps,
            offsets[n], states[n], offsets[len(kda) + n], convs[n],
        )
        for n, (layer, mixer) in enumerate(kda)
    )  # fmt: skip
    return blocks, end
