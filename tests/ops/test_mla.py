"""Latent attention: both forms against plain softmax attention, whatever lies in pages they should not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perilune.ops.linear.formats import DenseWeight
from perilune.ops.mla import reference as mla

HEADS, NOPE, ROPE, V, RANK = 3, 8, 4, 6, 16
SCALE = (NOPE + ROPE) ** -0.5


@dataclass
class Sequence:
    """Latents of one sequence in scattered pages among garbage; `q` [T, H, nope + rope]."""

    q: Tensor
    latents: Tensor
    kv_b: DenseWeight
    pages: Tensor
    table: Tensor

    def prefill(self, start: int, end: int) -> Tensor:
        return mla.prefill(
            self.q[start:end], self.pages, self.table, start, self.kv_b, nope=NOPE, v_dim=V, rank=RANK, scale=SCALE
        )

    def decode(self, position: int) -> Tensor:
        q = self.q[position : position + 1]
        absorbed = mla.absorb_query(q[..., :NOPE], self.kv_b, V)
        query = torch.cat([absorbed, q[..., NOPE:]], dim=-1)[0]
        latent = mla.decode(query, self.pages, self.table, position + 1, rank=RANK, scale=SCALE)
        return mla.expand_value(latent[None], self.kv_b, V)[0]

    def attention(self) -> Tensor:
        """Plain causal attention over expanded keys and values: [T, H, v]."""
        tokens = len(self.latents)
        expanded = (self.latents[:, :RANK] @ self.kv_b.data.T).view(tokens, HEADS, NOPE + V)
        shared = self.latents[:, None, RANK:].expand(-1, HEADS, -1)
        keys = torch.cat([expanded[..., :NOPE], shared], dim=-1)
        scores = torch.einsum("thd,shd->hts", self.q, keys) * SCALE
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
        return torch.einsum("hts,shd->thd", scores.softmax(-1), expanded[..., NOPE:])


def sequence(tokens: int, seed: int = 0, garbage: float = float("nan")) -> Sequence:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    count = -(-tokens // mla.PAGE)
    pages = torch.full((count + 3, mla.PAGE, RANK + ROPE), garbage)
    table = torch.randperm(count + 3, generator=random)[:count]
    latents = normal(tokens, RANK + ROPE)
    where = torch.arange(tokens)
    mla.write_latents(pages, table[where // mla.PAGE], where % mla.PAGE, latents)
    kv_b = DenseWeight(normal(HEADS * (NOPE + V), RANK) / RANK**0.5)
    return Sequence(normal(tokens, HEADS, NOPE + ROPE) * 3, latents, kv_b, pages, table)


def differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 255, 256, 257, 300, 513])
def test_prefill_is_causal_softmax_attention(tokens: int) -> None:
    s = sequence(tokens)
    assert differ(s.prefill(0, tokens), s.attention()) < 1e-5


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_absorbed_decode_equals_the_last_row_of_expanded_prefill(tokens: int, seed: int) -> None:
    s = sequence(tokens, seed)
    assert differ(s.decode(tokens - 1), s.prefill(0, tokens)[-1]) < 1e-5


@pytest.mark.parametrize("length", [mla.DECODE_BLOCK - 1, mla.DECODE_BLOCK, mla.DECODE_BLOCK + 1])
def test_decode_across_its_block_boundary(length: int) -> None:
    s = sequence(length)
    q = s.q[-1]
    expanded = (s.latents[:, :RANK] @ s.kv_b.data.T).view(length, HEADS, NOPE + V)
    keys = torch.cat([expanded[..., :NOPE], s.latents[:, None, RANK:].expand(-1, HEADS, -1)], dim=-1)
    p = (torch.einsum("hd,shd->hs", q, keys) * SCALE).softmax(-1)
    assert differ(s.decode(length - 1), torch.einsum("hs,shd->hd", p, expanded[..., NOPE:])) < 1e-5


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(65, 500), cut=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_prefill_cut_at_any_page_gives_the_bits_of_the_whole(tokens: int, cut: int, seed: int) -> None:
    s = sequence(tokens, seed)
    start = min(cut, (tokens - 1) // mla.PAGE) * mla.PAGE
    assert torch.equal(s.prefill(start, tokens), s.prefill(0, tokens)[start:])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_in_unused_rows_and_foreign_pages_never_shows(garbage: float) -> None:
    for tokens in (1, 40, 64, 65, 300):
        clean, dirty = sequence(tokens, garbage=0.0), sequence(tokens, garbage=garbage)
        assert torch.equal(clean.prefill(0, tokens), dirty.prefill(0, tokens))
        assert torch.equal(clean.decode(tokens - 1), dirty.decode(tokens - 1))


def test_later_tokens_of_the_same_sequence_never_show() -> None:
    s = sequence(200)
    before = s.prefill(64, 130)
    where = torch.arange(130, 200)
    mla.write_latents(s.pages, s.table[where // 64], where % 64, torch.full((70, RANK + ROPE), float("nan")))
    # rows 130 and later belong to the last pages of the piece, yet to none of its tokens
    assert torch.equal(before, s.prefill(64, 130))
    assert torch.isfinite(s.decode(129)).all()


def test_scores_far_beyond_exp_do_not_overflow() -> None:
    s = sequence(300)
    s.q *= 1e4
    assert torch.isfinite(s.prefill(0, 300)).all()
    assert torch.isfinite(s.decode(299)).all()


class _Largest(TorchDispatchMode):
    """Remembers the most values any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        fresh = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor)]
        self.numel = max([self.numel, *(x.untyped_storage().nbytes() // x.element_size() for x in fresh)])
        return out


def largest(function: Callable[[], Tensor]) -> int:
    with _Largest() as watch:
        function()
    return watch.numel


@pytest.mark.parametrize("form", ["prefill", "decode"])
def test_no_intermediate_grows_with_the_context(form: str) -> None:
    """64 new tokens or one, over contexts of 512, 4096 and 16384 tokens."""
    heads, nope, rope, v, rank = 8, 32, 16, 32, 128
    pages = torch.zeros(1, mla.PAGE, rank + rope)  # every table entry is this page: the context costs no memory here
    kv_b = DenseWeight(torch.zeros(heads * (nope + v), rank))
    peaks = {}
    for context in (512, 4096, 16384):
        table = torch.zeros(context // mla.PAGE, dtype=torch.int64)

        def run(table: Tensor = table, context: int = context) -> Tensor:
            if form == "decode":
                return mla.decode(torch.zeros(heads, rank + rope), pages, table, context, rank=rank, scale=0.1)
            q = torch.zeros(64, heads, nope + rope)
            return mla.prefill(q, pages, table, context - 64, kv_b, nope=nope, v_dim=v, rank=rank, scale=0.1)

        peaks[context] = largest(run)
    if form == "prefill":
        weights = kv_b.data.numel()  # a view of the weights counts as its storage
        assert peaks[512] == peaks[4096] == peaks[16384] == max(weights, mla.PREFILL_BLOCK * heads * (nope + v))
    else:
        assert peaks[4096] == peaks[16384] == mla.DECODE_BLOCK * (rank + rope)
        assert peaks[512] == 512 * (rank + rope)
    assert peaks[16384] < 16384 * heads * rank / 10
