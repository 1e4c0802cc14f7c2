"""What a model is, as data: one frozen ModelSpec per config.json. Imports no torch.

Planner, allocator, transfer, kernels and tests read this object; nobody else reads config.json.
Layer indices are 0-based everywhere outside `families/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DTYPE_BYTES = {
    "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "uint8": 1, "int8": 1, "int32": 4, "int64": 8,
}  # fmt: skip

WeightFormat = Literal["dense", "int4", "mxfp4", "fp8_block", "int8"]


@dataclass(frozen=True)
class YarnSpec:
    """YaRN (facts: inv_freq blends theta_i and theta_i/factor between `low` and `high`)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding over `dim` interleaved pairs of the shared key part."""

    dim: int
    theta: float
    yarn: YarnSpec | None = None


@dataclass(frozen=True)
class KdaSpec:
    """Kimi Delta Attention: `heads` x (`head_dim` keys, `head_dim` values), short convolution of `taps`."""

    heads: int
    head_dim: int
    taps: int = 4
    gate_rank: int = 128
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def carried_taps(self) -> int:
        """Raw inputs the convolution must remember: the last `taps - 1`."""
        return self.taps - 1


@dataclass(frozen=True)
class MlaSpec:
    """Multi-head latent attention. `rope is None` means the `rope_dim` key dims are not rotated (NoPE)."""

    heads: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    latent_rank: int
    q_rank: int | None = None
    rope: RopeSpec | None = None
    latent_norm_eps: float = 1e-6

    @property
    def qk_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def cache_dim(self) -> int:
        """Values cached per token and layer: latent, then shared key part."""
        return self.latent_rank + self.rope_dim

    @property
    def softmax_scale(self) -> float:
        """(nope + rope)^-1/2, times m^2 with m = 0.1 * mscale_all_dim * ln(factor) + 1 under YaRN."""
        scale = math.pow(self.qk_dim, -0.5)
        yarn = self.rope.yarn if self.rope else None
        if yarn and yarn.mscale_all_dim and yarn.factor > 1:
            m = 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1.0
            scale *= m * m
        return scale


@dataclass(frozen=True)
class DenseSpec:
    """SwiGLU of `width`."""

    width: int


@dataclass(frozen=True)
class MoeSpec:
    """Sigmoid router with correction bias over `experts`, `top_k` of them, plus shared experts of `shared_width`."""

    experts: int
    top_k: int
    width: int
    shared_width: int
    groups: int = 1
    top_groups: int = 1
    renormalise: bool = True
    scaling: float = 1.0


@dataclass(frozen=True)
class LayerSpec:
    mixer: KdaSpec | MlaSpec
    ffn: DenseSpec | MoeSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole decoder.

    `family` is the reader that made it (`kimi_linear`, `deepseek_v3`, `glm4_moe_lite`), `architecture` the hub's
    class name, `dtype` the checkpoint's own dtype, `stop_ids` every id that ends a turn.
    """

    family: str
    architecture: str
    layers: tuple[LayerSpec, ...]
    vocab: int
    hidden: int
    norm_eps: float
    max_context: int
    dtype: str
    stop_ids: tuple[int, ...]
    bos_id: int | None = None
    pad_id: int | None = None
    tied_embedding: bool = False

    @property
    def kda_layers(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.mixer, KdaSpec))

    @property
    def mla_layers(self) -> tuple[int, ...]:
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.mixer, MlaSpec))


@dataclass(frozen=True)
class Split:
    """The dimension of a tensor that tensor-parallel ranks share; `heads`: how many equal parts stay whole in it."""

    axis: Literal["rows", "columns"]
    heads: int | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor the model needs.

    `name` is perilune's own name, `stored` the name in the checkpoint (for a module that may be quantised: the
    module's name plus `.weight`), `shape` the shape in the files, `held` the shape in memory where that drops
    dimensions of size 1, `keep` the dtype that must survive a cast (`float32` for A_log, dt_bias and the router bias;
    `stored` for the router, whatever the files hold), `quantisable` whether packed forms are accepted. `split` says
    how ranks share it (None: each holds all of it), `expert` which one it belongs to, of how many.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    keep: str | None = None
    quantisable: bool = False
    held: tuple[int, ...] | None = None
    split: Split | None = None
    expert: tuple[int, int] | None = None

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The shape the loader returns."""
        return self.shape if self.held is None else self.held

    @property
    def elements(self) -> int:
        return math.prod(self.shape)
