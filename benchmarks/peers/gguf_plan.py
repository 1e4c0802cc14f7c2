"""What a GGUF file of a slice holds: llama.cpp's names, and how each tensor is made from the checkpoint's.

Names, and what is split, transposed or negated: convert_hf_to_gguf.py of llama.cpp, conversion/kimi_linear.py and
conversion/deepseek.py. kv_b is split into its key half, transposed, and its value half. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from peers.q4_0 import BLOCK_BYTES, GROUP, Array, from_bf16, pack_q4_0, unpack
from perilune.models.checkpoint import Checkpoint
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, MoeSpec

Type = Literal["F32", "BF16", "Q4_0"]


@dataclass(frozen=True)
class Planned:
    """One tensor of the file. `shape` counts values, slowest first; `make` returns values, or Q4_0 bytes."""

    name: str
    type: Type
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def stored(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of what `make` returns."""
        if self.type == "Q4_0":
            return (*self.shape[:-1], self.shape[-1] // GROUP * BLOCK_BYTES), np.dtype(np.uint8)
        return self.shape, np.dtype(np.float32 if self.type == "F32" else np.uint16)

    @property
    def nbytes(self) -> int:
        shape, dtype = self.stored
        return int(np.prod(shape)) * dtype.itemsize


class Source:
    """The slice's tensors, by perilune's names, read through a map of the file."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = Checkpoint.open(folder)
        self.spec = self._checkpoint.spec
        self.config = self._checkpoint.config
        self._tensors = {tensor.name: tensor for tensor in self._checkpoint.tensors}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def bits(self, name: str) -> Array:
        """A dense tensor as stored: uint16 for bf16, float32."""
        return self._read(self._tensors[name].stored)

    def values(self, name: str) -> Array:
        """A dense tensor in fp32."""
        bits = self.bits(name)
        return from_bf16(bits) if bits.dtype == np.uint16 else bits

    def int4(self, name: str) -> tuple[Array, Array]:
        """(codes uint8 [N, K], factors fp16 [N, K / 32]). A factor that fp16 cannot hold is a ValueError."""
        module = self._tensors[name].stored.removesuffix(".weight")
        packed, factors = self._read(f"{module}.weight_packed"), from_bf16(self._read(f"{module}.weight_scale"))
        scales = factors.astype(np.float16)
        if not np.array_equal(scales.astype(np.float32), factors):
            raise ValueError(f"{name}: a scale is beyond fp16; Q4_0 cannot hold the same bits.")
        return unpack(packed.view(np.uint8)), scales

    def _read(self, stored: str) -> Array:
        tensor = self._checkpoint.stored[stored]
        dtype = np.dtype(np.uint16 if tensor.dtype == "bfloat16" else tensor.dtype)
        return np.asarray(np.memmap(tensor.file, dtype, "r", tensor.offset, tensor.shape))


def plan(source: Source) -> Iterator[Planned]:
    """Every tensor of the file, in order."""
    yield Planned("token_embd.weight", "BF16", source.shape("embed"), lambda: source.bits("embed"))
    yield _plain("output_norm.weight", source, "norm")
    yield _matrix("output.weight", source, "lm_head")
    for index, layer in enumerate(source.spec.layers):
        yield from _layer(layer, source, f"blk.{index}", f"layers.{index}")


def _layer(layer: LayerSpec, source: Source, block: str, ours: str) -> Iterator[Planned]:
    yield _plain(f"{block}.attn_norm.weight", source, f"{ours}.mixer_norm")
    yield _plain(f"{block}.ffn_norm.weight", source, f"{ours}.ffn_norm")
    if isinstance(layer.mixer, KdaSpec):
        yield from _kda(layer.mixer, source, block, f"{ours}.kda")
    else:
        yield from _mla(layer.mixer, source, block, f"{ours}.mla")
    if isinstance(layer.ffn, DenseSpec):
        for part in ("gate", "up", "down"):
            yield _matrix(f"{block}.ffn_{part}.weight", source, f"{ours}.ffn.{part}")
    else:
        yield from _moe(layer.ffn, source, block, f"{ours}.moe")


def _kda(kda: KdaSpec, source: Source, block: str, ours: str) -> Iterator[Planned]:
    matrices = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "b": "ssm_beta"}
    for name, theirs in {**matrices, **{f"{g}_{p}": f"ssm_{g}_{p}" for g in "fg" for p in "ab"}}.items():
        yield _matrix(f"{block}.{theirs}.weight", source, f"{ours}.{name}")
    for part in "qkv":
        shape = (1, kda.width, 1, kda.taps)
        yield _plain(f"{block}.ssm_conv1d_{part}.weight", source, f"{ours}.{part}_conv", shape)
    rates = (1, 1, kda.heads, 1)
    yield Planned(f"{block}.ssm_a", "F32", rates, lambda: -np.exp(source.values(f"{ours}.a_log")).reshape(rates))
    yield _plain(f"{block}.ssm_dt.bias", source, f"{ours}.dt_bias")
    yield _plain(f"{block}.ssm_norm.weight", source, f"{ours}.norm")


def _mla(mla: MlaSpec, source: Source, block: str, ours: str) -> Iterator[Planned]:
    if mla.q_rank is None:
        yield _matrix(f"{block}.attn_q.weight", source, f"{ours}.q")
    else:
        yield _matrix(f"{block}.attn_q_a.weight", source, f"{ours}.q_a")
        yield _plain(f"{block}.attn_q_a_norm.weight", source, f"{ours}.q_norm")
        yield _matrix(f"{block}.attn_q_b.weight", source, f"{ours}.q_b")
    yield _matrix(f"{block}.attn_kv_a_mqa.weight", source, f"{ours}.kv_a")
    yield _plain(f"{block}.attn_kv_a_norm.weight", source, f"{ours}.kv_norm")
    yield _matrix(f"{block}.attn_output.weight", source, f"{ours}.o")

    def halves() -> tuple[Array, Array, np.float16]:
        """Codes of the key half [H, nope, R] and the value half [H, v, R], and the factor they share."""
        codes, scales = source.int4(f"{ours}.kv_b")
        if not (scales == scales.flat[0]).all():
            raise ValueError(f"{ours}.kv_b has several scales; its transposed half cannot be Q4_0 with the same bits.")
        heads = codes.reshape(mla.heads, mla.nope_dim + mla.v_dim, mla.latent_rank)
        return heads[:, : mla.nope_dim], heads[:, mla.nope_dim :], scales.flat[0]

    def keys() -> Array:
        codes, _, scale = halves()
        return _pack_even(np.ascontiguousarray(codes.transpose(0, 2, 1)), scale)

    def values() -> Array:
        _, codes, scale = halves()
        return _pack_even(np.ascontiguousarray(codes), scale)

    yield Planned(f"{block}.attn_k_b.weight", "Q4_0", (mla.heads, mla.latent_rank, mla.nope_dim), keys)
    yield Planned(f"{block}.attn_v_b.weight", "Q4_0", (mla.heads, mla.v_dim, mla.latent_rank), values)


def _pack_even(codes: Array, scale: np.float16) -> Array:
    return pack_q4_0(codes, np.full((*codes.shape[:-1], codes.shape[-1] // GROUP), scale, np.float16))


def _moe(moe: MoeSpec, source: Source, block: str, ours: str) -> Iterator[Planned]:
    yield _plain(f"{block}.ffn_gate_inp.weight", source, f"{ours}.router")
    yield _plain(f"{block}.exp_probs_b.bias", source, f"{ours}.router_bias")
    for part in ("gate", "up", "down"):
        yield _stack(f"{block}.ffn_{part}_exps.weight", source, f"{ours}.experts", part, moe.experts)
        if moe.shared_width:
            yield _matrix(f"{block}.ffn_{part}_shexp.weight", source, f"{ours}.shared.{part}")


def _plain(name: str, source: Source, ours: str, shape: tuple[int, ...] | None = None) -> Planned:
    """Small tensors are fp32 in these files."""
    kept = shape or source.shape(ours)
    return Planned(name, "F32", kept, lambda: source.values(ours).reshape(kept))


def _matrix(name: str, source: Source, ours: str) -> Planned:
    return Planned(name, "Q4_0", source.shape(ours), lambda: pack_q4_0(*source.int4(ours)))


def _stack(name: str, source: Source, ours: str, part: str, experts: int) -> Planned:
    rows, columns = source.shape(f"{ours}.0.{part}")

    def make() -> Array:
        out = np.empty((experts, rows, columns // GROUP * BLOCK_BYTES), np.uint8)
        for expert in range(experts):
            out[expert] = pack_q4_0(*source.int4(f"{ours}.{expert}.{part}"))
        return out

    return Planned(name, "Q4_0", (experts, rows, columns), make)
