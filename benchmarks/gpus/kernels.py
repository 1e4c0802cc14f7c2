"""Each kernel of `ops/*/triton.py` at a real model's shapes, beside what the device allows.

A limit is the bytes that must be read or written over the read bandwidth, or the operations over the rate of bf16
products, whichever takes longer: weights, state and latents once each, activations left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpus import targets
from gpus.clock import Clock
from gpus.fla import Fla
from gpus.limits import Limits
from gpus.rows import Row, Target
from gpus.sizes import Sizes
from gpus.weights import weight
from perilune.ops.gpu.launch import Gpu
from perilune.ops.kda import reference as kda_reference
from perilune.ops.kda import triton as kda
from perilune.ops.kda.reference import CHUNK, Parameters, Projections
from perilune.ops.linear import triton as linear
from perilune.ops.mla import triton as mla
from perilune.ops.mla.reference import PAGE, Shape
from perilune.ops.moe import triton as moe
from perilune.ops.norm import triton as norm
from perilune.ops.sample import triton as sample
from perilune.ops.sample.reference import Choice

MICRO = 1e6


@dataclass(frozen=True)
class Kernels:
    """Everything one sitting measures of kernels alone. `fla` is fla-core if it is installed."""

    gpu: Gpu
    clock: Clock
    limits: Limits
    sizes: Sizes
    fla: Fla | None
    wanted: Callable[[str], bool]

    def rows(self) -> Iterator[Row]:
        for form in self.sizes.formats:
            yield from self.linear(form)
            yield from self.experts(form)
        yield from self.small()
        yield from self.kda_prefill()
        yield from self.kda_decode()
        yield from self.mla_decode()
        yield from self.mla_prefill()
        yield from self.sampling()

    def row(
        self,
        name: str,
        call: Callable[[], object],
        nbytes: float,
        operations: float = 0.0,
        *,
        of_limit: float | None = None,
        times_fla: float | None = None,
        peer: Callable[[], object] | None = None,
    ) -> Iterator[Row]:
        """The row, if it is wanted. `of_limit` and `times_fla` are targets."""
        if not self.wanted(name):
            return
        limit = MICRO * max(nbytes / self.limits.read, operations / self.limits.fastest) / 1e9
        ours = [MICRO * s for s in self.clock.samples(call)]
        row = Row(name, "µs", ours, limit, [MICRO * s for s in self.clock.samples(peer)] if peer else [])
        if of_limit is not None:
            row = replace(row, target=Target("of the limit", of_limit, row.of_limit))
        elif times_fla is not None:
            row = replace(row, target=Target("x fla-core", times_fla, row.ratio))
        yield row

    def linear(self, form: str) -> Iterator[Row]:
        s = self.sizes
        w = weight(form, self.clock.device, s.heads * s.dim, s.hidden)
        for tokens in (*s.few, *s.many):
            x = self.values(tokens, s.hidden)
            operations = 2.0 * tokens * s.heads * s.dim * s.hidden
            yield from self.row(
                f"linear {form}, {tokens:,} rows", partial(linear.linear, self.gpu, x, w), w.nbytes, operations
            )

    def experts(self, form: str) -> Iterator[Row]:
        """Every token draws experts of its own; those that any of them drew are read."""
        s = self.sizes
        shapes = ((s.experts, s.width, s.hidden), (s.experts, s.width, s.hidden), (s.experts, s.hidden, s.width))
        parts = [weight(form, self.clock.device, *shape) for shape in shapes]
        each = sum(part.nbytes for part in parts) / s.experts
        named, share = targets.MOE_DECODE
        for tokens in (*s.few, *s.many):
            x = self.values(tokens, s.hidden)
            ids = torch.rand(tokens, s.experts, device=self.clock.device).topk(s.top_k).indices
            shares = torch.rand(tokens, s.top_k, device=self.clock.device)
            yield from self.row(
                f"experts {form}, {tokens:,} tokens",
                partial(moe.experts, self.gpu, x, ids, shares, *parts),
                each * len(ids.unique()),
                6.0 * tokens * s.top_k * s.hidden * s.width,
                of_limit=share if form == named and tokens in s.few else None,
            )

    def small(self) -> Iterator[Row]:
        """Norm, router, dense feed-forward, and what stores latents."""
        s, device = self.sizes, self.clock.device
        router, bias = weight("bf16", device, s.experts, s.hidden), torch.zeros(s.experts, device=device)
        gate, up, down = (
            weight("int4-32", device, *shape) for shape in ((s.width, s.hidden),) * 2 + ((s.hidden, s.width),)
        )
        for tokens in (s.few[-1], s.many[-1]):
            x, scale = self.values(tokens, s.hidden), self.values(s.hidden)
            yield from self.row(
                f"rms_norm, {tokens:,} rows", partial(norm.rms_norm, self.gpu, x, scale, 1e-5), 2 * x.nbytes
            )
            yield from self.row(
                f"router, {tokens:,} rows",
                partial(moe.route, self.gpu, x, router.data, bias, top_k=s.top_k),
                router.nbytes,
                2.0 * tokens * s.experts * s.hidden,
            )
            yield from self.row(
                f"swiglu int4-32, {tokens:,} rows",
                partial(moe.swiglu, self.gpu, x, gate, up, down),
                3 * gate.nbytes,
                6.0 * tokens * s.hidden * s.width,
            )
            q, kv = self.values(tokens, s.heads, s.dim + s.rope), self.values(tokens, s.rank + s.rope)
            pages = self.values(-(-tokens // PAGE), PAGE, s.rank + s.rope)
            turn = tuple(torch.rand(tokens, s.rope // 2, device=device) for _ in range(2))
            at = torch.arange(tokens, device=device)
            moved = 2 * kv.nbytes + 4 * tokens * s.heads * s.rope
            yield from self.row(
                f"mla_store, {tokens:,} rows",
                partial(mla.store, self.gpu, q, kv, self.values(s.rank), 1e-5, turn, pages, at // PAGE, at % PAGE),
                moved,
            )

    def kda_prefill(self) -> Iterator[Row]:
        """The whole step between projections and `o`: convolution, gate, state with exports, gated norm."""
        s = self.sizes
        for tokens in s.kda_tokens:
            x, w, state, conv = self.kda(tokens, 2 + tokens // s.exports)
            exports = [(after, 2 + i) for i, after in enumerate(range(s.exports, tokens + 1, s.exports))]
            ours = partial(kda.prefill, self.gpu, x, slice(0, tokens), 0, w, state, conv, exports)
            theirs = self.fla.prefill(x, w) if self.fla else None
            name = f"kda prefill, {tokens:,} tokens, {len(exports)} exports"
            moved = tokens * s.heads * s.dim * 12.0 + 4.0 * s.heads * s.dim**2 * (2 + len(exports))
            # per token and head: (K exp G) S, (Q exp G) S and K^T R are K x V; A, M, A R and M R half a chunk wide
            operations = tokens * s.heads * (3 * 2.0 * s.dim**2 + 4 * 2.0 * (CHUNK // 2) * s.dim)
            wanted = targets.KDA_PREFILL_TIMES_FLA if tokens == targets.KDA_PREFILL_TOKENS else None
            yield from self.row(name, ours, moved, operations, times_fla=wanted, peer=theirs)
            yield from self.error(tokens, x, w, theirs)

    def error(self, tokens: int, x: Projections, w: Parameters, theirs: Callable[[], Tensor] | None) -> Iterator[Row]:
        """Of one prefill from an empty state: the output's distance from the fp32 reference over its length."""
        name = f"kda prefill, {tokens:,} tokens: error"
        if not self.wanted(name):
            return
        _, _, state, conv = self.kda(1, 2, empty=True)
        ours = kda.prefill(self.gpu, x, slice(0, tokens), 0, w, state, conv).float()
        wide = Projections(x.raw.float(), x.f.float(), x.b.float(), x.out_gate.float())
        exact = Parameters(w.conv.float(), w.a_log, w.dt_bias, w.norm.float(), w.eps)
        _, _, state, conv = self.kda(1, 2, empty=True)
        expected = kda_reference.prefill(wide, slice(0, tokens), 0, exact, state, conv.float())

        def distance(out: Tensor) -> float:
            return float((out.float().view_as(expected) - expected).norm() / expected.norm())

        row = Row(name, "of 1", [distance(ours)], peer=[distance(theirs())] if theirs else [])
        yield replace(row, target=Target("x fla-core", 1.0, row.ratio))

    def kda_decode(self) -> Iterator[Row]:
        s = self.sizes
        for n in s.kda_batches:
            x, w, state, conv = self.kda(n, n)
            rows = torch.arange(n, device=self.clock.device)
            yield from self.row(
                f"kda decode, {n} sequences",
                partial(kda.decode, self.gpu, x, rows, rows, w, state, conv),
                2.0 * state.nbytes,
                7.0 * state.nbytes / 4,
                of_limit=targets.KDA_DECODE[1] if n == targets.KDA_DECODE[0] else None,
                peer=self.fla.decode(x, w, state) if self.fla else None,
            )

    def mla_decode(self) -> Iterator[Row]:
        s, device = self.sizes, self.clock.device
        kv_b, shape = self.attention()
        for n, context in s.latents:
            each = -(-context // PAGE)
            pages, q = self.values(n * each, PAGE, s.rank + s.rope), self.values(n, s.heads, s.dim + s.rope)
            # a sequence's pages lie anywhere
            tables = torch.randperm(n * each, device=device).view(n, each)
            lengths = torch.full((n,), context, device=device)
            yield from self.row(
                f"mla decode, {n} x {context:,}",
                partial(mla.decode_rows, self.gpu, q, pages, tables, lengths, kv_b, **shape),  # type: ignore[arg-type]
                n * context * (s.rank + s.rope) * 2.0 + kv_b.nbytes,
                2.0 * n * s.heads * context * (2 * s.rank + s.rope),
                of_limit=targets.MLA_DECODE[1] if (n, context) == targets.MLA_DECODE[0] else None,
            )

    def mla_prefill(self) -> Iterator[Row]:
        s, device = self.sizes, self.clock.device
        kv_b, shape = self.attention()
        for tokens, before in s.prompts:
            context = tokens + before
            pages, q = (
                self.values(-(-context // PAGE), PAGE, s.rank + s.rope),
                self.values(tokens, s.heads, s.dim + s.rope),
            )
            table = torch.arange(pages.shape[0], device=device)
            expanded = 2.0 * context * s.heads * 2 * s.dim * s.rank
            attended = 2.0 * tokens * (before + tokens / 2) * s.heads * (2 * s.dim + s.rope)
            yield from self.row(
                f"mla prefill, {tokens:,} tokens after {before:,}",
                partial(mla.prefill, self.gpu, q, pages, table, before, kv_b, **shape),
                context * (s.rank + s.rope) * 2.0,
                expanded + attended,
            )

    def sampling(self) -> Iterator[Row]:
        s, device = self.sizes, self.clock.device
        for n in (1, s.few[-1]):
            logits = torch.randn(n, s.vocab, device=device) * 3
            settings = sample.asked([Choice(40, 0.95, 0.05, 0.5)] * n, device)
            yield from self.row(
                f"truncate, {n} rows", partial(sample.truncate, self.gpu, logits, settings), 2 * logits.nbytes
            )
            yield from self.row(f"draw, {n} rows", partial(sample.draw, self.gpu, logits, settings), logits.nbytes)

    def attention(self) -> tuple[Any, Shape]:
        """kv_b and the sizes of MLA's heads."""
        s = self.sizes
        kv_b = weight("bf16", self.clock.device, s.heads * 2 * s.dim, s.rank)
        return kv_b, {"nope": s.dim, "v_dim": s.dim, "rank": s.rank, "scale": (s.dim + s.rope) ** -0.5}

    def kda(self, tokens: int, slots: int, *, empty: bool = False) -> tuple[Projections, Parameters, Tensor, Tensor]:
        """Projections of random tokens, a layer's parameters, and states and windows of `slots` sequences."""
        s, device = self.sizes, self.clock.device
        x = Projections(
            self.values(tokens, 3 * s.heads * s.dim),
            self.values(tokens, s.heads, s.dim),
            self.values(tokens, s.heads),
            self.values(tokens, s.heads, s.dim),
        )
        step = torch.empty(s.heads, s.dim, device=device).uniform_(1e-3, 0.1)
        w = Parameters(
            torch.empty(3 * s.heads * s.dim, 4, device=device).uniform_(-0.5, 0.5).bfloat16(),
            torch.empty(s.heads, device=device).uniform_(1, 16).log(),
            step + (-(-step).expm1()).log(),  # the inverse of softplus, as models are initialised
            torch.ones(s.dim, device=device).bfloat16(),
            1e-5,
        )
        state = torch.zeros(slots, s.heads, s.dim, s.dim, device=device)
        conv = torch.zeros(slots, 3, s.heads, s.dim, 3, device=device).bfloat16()
        return x, w, state if empty else state.normal_(0, 0.1), conv if empty else conv.normal_()

    def values(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.clock.device, dtype=torch.bfloat16)
