"""Q4_0 blocks stand for the numbers of the checkpoint, bit for bit, and every tensor goes into the file once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peers.gguf_plan import Planned, Source, plan
from peers.q4_0 import BLOCK_BYTES, Array, from_bf16, pack_q4_0, unpack

from perilune.models.checkpoint import Checkpoint
from perilune.models.loader import load_weights
from perilune.ops.linear.formats import Int4Weight, pack_int4

KV_B = (2, 64, 64)  # heads, key and value rows, rank


def values(blocks: Array) -> Array:
    """What ggml reads: the definition of the format, block by block."""
    rows = blocks.reshape(-1, BLOCK_BYTES)
    factor = rows[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.concatenate([rows[:, 2:] & 15, rows[:, 2:] >> 4], axis=1).astype(np.int32)
    return ((codes - 8) * factor).reshape(*blocks.shape[:-1], -1)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_packing_keeps_every_weight(rows: int, groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    q = torch.randint(-8, 8, (rows, 32 * groups), dtype=torch.int8)
    scale = torch.rand(rows, groups).add(0.01).bfloat16()
    weight = Int4Weight(pack_int4(q), scale, None, 32)
    codes = unpack(weight.packed.numpy().view(np.uint8))
    packed = pack_q4_0(codes, from_bf16(scale.view(torch.uint16).numpy()).astype(np.float16))
    assert np.array_equal(values(packed), q.float().numpy() * scale.float().repeat_interleave(32, 1).numpy())


@pytest.fixture(scope="module")
def planned(tiny_slice: Path) -> dict[str, Planned]:
    found = list(plan(Source(tiny_slice)))
    assert len({tensor.name for tensor in found}) == len(found)
    return {tensor.name: tensor for tensor in found}


def test_every_tensor_makes_what_it_announces(planned: dict[str, Planned]) -> None:
    for tensor in planned.values():
        made, (shape, dtype) = tensor.make(), tensor.stored
        assert (made.shape, made.dtype, made.nbytes) == (shape, dtype, tensor.nbytes), tensor.name


def test_all_parameters_of_the_slice_are_in_the_file(planned: dict[str, Planned], tiny_slice: Path) -> None:
    needed = sum(tensor.elements for tensor in Checkpoint.open(tiny_slice).tensors)
    assert sum(int(np.prod(tensor.shape)) for tensor in planned.values()) == needed


def test_layers_have_the_names_llama_cpp_asks_for(planned: dict[str, Planned]) -> None:
    kda = {"attn_q", "attn_k", "attn_v", "attn_output", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta"}
    kda |= {"ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "ssm_norm", "attn_norm", "ffn_norm"}
    dense = {"ffn_gate", "ffn_up", "ffn_down"}
    mla = {"attn_q", "attn_kv_a_mqa", "attn_kv_a_norm", "attn_k_b", "attn_v_b", "attn_output", "attn_norm", "ffn_norm"}
    moe = {"ffn_gate_inp", *(f"{part}_{kind}" for part in dense for kind in ("exps", "shexp"))}
    first = {f"blk.0.{name}.weight" for name in kda | dense} | {"blk.0.ssm_a", "blk.0.ssm_dt.bias"}
    second = {f"blk.1.{name}.weight" for name in mla | moe} | {"blk.1.exp_probs_b.bias"}
    assert {name for name in planned if name.startswith("blk.0.")} == first
    assert {name for name in planned if name.startswith("blk.1.")} == second


def test_experts_are_stacked_in_order_with_the_same_weights(planned: dict[str, Planned], tiny_slice: Path) -> None:
    stack = load_weights(Checkpoint.open(tiny_slice), torch.bfloat16)["layers.1.moe.experts.down"]
    assert isinstance(stack, Int4Weight)
    # The product of a code and a factor is exact in fp32; bf16 would round it.
    exact = Int4Weight(stack.packed, stack.scale.float(), None, 32).dequantise(torch.float32)
    assert np.array_equal(values(planned["blk.1.ffn_down_exps.weight"].make()), exact.numpy())


def test_kv_b_is_split_and_its_key_half_transposed(planned: dict[str, Planned], tiny_slice: Path) -> None:
    kv_b = load_weights(Checkpoint.open(tiny_slice), torch.bfloat16)["layers.1.mla.kv_b"]
    assert isinstance(kv_b, Int4Weight)
    heads = Int4Weight(kv_b.packed, kv_b.scale.float(), None, 32).dequantise(torch.float32).reshape(KV_B)
    assert np.array_equal(values(planned["blk.1.attn_k_b.weight"].make()), heads[:, :32].transpose(1, 2).numpy())
    assert np.array_equal(values(planned["blk.1.attn_v_b.weight"].make()), heads[:, 32:].numpy())


def test_decay_rates_are_stored_negated_and_exponentiated(planned: dict[str, Planned], tiny_slice: Path) -> None:
    a_log = load_weights(Checkpoint.open(tiny_slice), torch.bfloat16)["layers.0.kda.a_log"]
    assert isinstance(a_log, torch.Tensor)
    np.testing.assert_allclose(planned["blk.0.ssm_a"].make().reshape(-1), -a_log.exp().numpy(), rtol=1e-6)


def test_a_factor_beyond_fp16_is_an_error(tiny_slice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(tiny_slice)
    read = source._read
    tiny = np.uint16(0x2000)  # 2^-63
    monkeypatch.setattr(source, "_read", lambda n: read(n) if n.endswith("packed") else np.full_like(read(n), tiny))
    with pytest.raises(ValueError, match="beyond fp16"):
        source.int4("lm_head")
