"""The chunked form is the recurrence, for any length, any cut and any decay."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perilune.ops.kda import reference as kda

HEADS, K, V = 2, 16, 8

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(tokens: int, seed: int, decay: float, strong_heads: int = HEADS) -> Inputs:
    """q, k, v, g, beta and a start state. Over 64 tokens g sums to about `-decay` in the first `strong_heads` heads."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    q, k = kda.normalise_qk(normal(HEADS, tokens, K), normal(HEADS, tokens, K))
    g = -torch.rand(HEADS, tokens, K, generator=random) * 2 * decay / 64
    g[strong_heads:] /= 1000
    return q, k, normal(HEADS, tokens, V), g, torch.rand(HEADS, tokens, generator=random), normal(HEADS, K, V)


def differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 200), seed=st.integers(0, 2**31), decay=st.sampled_from([0.01, 1.0, 30.0, 195.0, 800.0]))
def test_chunked_equals_recurrent(tokens: int, seed: int, decay: float) -> None:
    data = inputs(tokens, seed, decay)
    chunked, states = kda.chunk_kda(*data)
    recurrent, state = kda.recurrent_kda(*data)
    assert states.shape == (-(-tokens // kda.CHUNK), HEADS, K, V)
    assert differ(chunked, recurrent) < 1e-4
    assert differ(states[-1], state) < 1e-4


@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(1, 130), seed=st.integers(0, 2**31), decay=st.sampled_from([4000.0, 1e6]))
def test_absurd_decays_stay_finite_and_right(tokens: int, seed: int, decay: float) -> None:
    """Running sums of -4000 carry an absolute rounding of about 2e-4, hence the wider limit there."""
    data = inputs(tokens, seed, decay, strong_heads=1)
    chunked, states = kda.chunk_kda(*data)
    recurrent, state = kda.recurrent_kda(*data)
    for ours, expected in ((chunked, recurrent), (states[-1], state)):
        assert torch.isfinite(ours).all()
        assert differ(ours[1], expected[1]) < 1e-4  # the head beside it, with mild decay
        if decay <= 4000:
            assert differ(ours, expected) < 2e-3


@pytest.mark.parametrize("pattern", ["sudden", "alternating", "none"])
def test_decays_that_come_all_at_once(pattern: str) -> None:
    q, k, v, g, beta, start = inputs(130, 5, 1.0)
    if pattern == "sudden":
        g[:, 70] = -4000.0
    elif pattern == "alternating":
        g[:, ::2] = -90.0
    else:
        g.zero_()
    o, states = kda.chunk_kda(q, k, v, g, beta, start)
    expected, state = kda.recurrent_kda(q, k, v, g, beta, start)
    assert differ(o, expected) < 2e-3
    assert differ(states[-1], state) < 2e-3


@pytest.mark.parametrize("decay", [1.0, 195.0, 4000.0])
def test_gradients_are_finite_and_those_of_the_recurrence(decay: float) -> None:
    def gradients(chunked: bool) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in inputs(70, 3, decay)]
        o, state = kda.chunk_kda(*leaves) if chunked else kda.recurrent_kda(*leaves)
        (o.square().sum() + (state[-1] if chunked else state).square().sum()).backward()
        return [x.grad for x in leaves if x.grad is not None]

    ours, expected = gradients(chunked=True), gradients(chunked=False)
    assert len(ours) == 6
    for a, b in zip(ours, expected, strict=True):
        assert torch.isfinite(a).all()
        assert differ(a, b) < 1e-3 * max(1.0, float(b.abs().max()))


def test_the_state_of_each_chunk_is_the_state_of_the_shorter_run() -> None:
    q, k, v, g, beta, start = inputs(200, 7, 60.0)
    _, states = kda.chunk_kda(q, k, v, g, beta, start)
    for n, tokens in enumerate((64, 128, 192, 200)):
        cut = (q[:, :tokens], k[:, :tokens], v[:, :tokens], g[:, :tokens], beta[:, :tokens], start)
        assert differ(states[n], kda.chunk_kda(*cut)[1][-1]) < 1e-6
        assert differ(states[n], kda.recurrent_kda(*cut)[1]) < 1e-5


def test_a_run_continues_from_an_exported_state() -> None:
    q, k, v, g, beta, start = inputs(150, 11, 60.0)
    whole, states = kda.chunk_kda(q, k, v, g, beta, start)
    rest = (q[:, 64:], k[:, 64:], v[:, 64:], g[:, 64:], beta[:, 64:], states[0])
    o, after = kda.chunk_kda(*rest)
    assert differ(o, whole[:, 64:]) < 1e-6
    assert differ(after[-1], states[-1]) < 1e-6


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 30), cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 2**31))
def test_a_convolution_cut_anywhere_is_the_whole(tokens: int, cuts: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(tokens, 6, generator=random), torch.randn(6, 4, generator=random)
    window = torch.randn(6, 3, generator=random)
    whole = kda.short_conv(x, weight, window)
    pieces, current = [], window
    edges = [0, *sorted(cut for cut in cuts if cut <= tokens), tokens]
    for first, last in pairwise(edges):
        if last > first:
            pieces.append(kda.short_conv(x[first:last], weight, current))
        current = kda.next_window(x[first:last], current)
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(current, kda.next_window(x, window))
    assert torch.equal(current, torch.cat([window, x.T], dim=-1)[:, -3:])


def test_the_last_tap_is_the_current_token() -> None:
    x = torch.tensor([[1.0], [2.0], [3.0]])
    y = kda.short_conv(x, torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 3))
    assert torch.allclose(y, torch.nn.functional.silu(x))
    y = kda.short_conv(x, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[7.0, 8.0, 9.0]]))
    assert torch.allclose(y, torch.nn.functional.silu(torch.tensor([[7.0], [8.0], [9.0]])))


def test_gate_against_its_formula_where_softplus_is_hard() -> None:
    f = torch.tensor([-80.0, -1.0, 0.0, 1.0, 80.0]).view(1, 1, 1, 5).expand(1, 1, 2, 5)
    a_log, dt_bias = torch.tensor([0.0, 2.5]), torch.zeros(2, 5)
    expected = -a_log.double().exp()[:, None] * torch.log1p(f.double().exp())
    assert torch.allclose(kda.gate(f, a_log, dt_bias).double(), expected, rtol=1e-5, atol=1e-30)
    assert kda.gate(f.bfloat16(), a_log, dt_bias).dtype == torch.float32


def test_unit_keys_and_scaled_queries_even_for_a_zero_vector() -> None:
    q, k = kda.normalise_qk(torch.randn(3, 16).bfloat16() * 50, torch.zeros(3, 16).bfloat16())
    assert torch.allclose(q.norm(dim=-1), torch.full((3,), 0.25), atol=1e-3)
    assert q.dtype == torch.float32
    assert torch.equal(k, torch.zeros(3, 16))


def test_gated_norm_keeps_eps_inside_the_root() -> None:
    """The variance of KDA outputs is often far below eps; moving or dropping it changes the model."""
    o, weight = torch.full((1, 4), 1e-4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = 1e-4 / (1e-8 + 1e-5) ** 0.5 * weight * 0.5
    assert torch.allclose(kda.gated_norm(o, torch.zeros(1, 4), weight, 1e-5), expected[None])
