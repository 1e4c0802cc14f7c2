"""Sampling in Triton's interpreter picks what the reference picks."""

from __future__ import annotations

import pytest
import torch

from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu
from perilune.ops.sample import reference, triton
from perilune.ops.sample.reference import Choice

GPU = Gpu(ARCHES["gfx1151"])


def logits(size: int, seed: int) -> torch.Tensor:
    """With ties at odd seeds, and tokens that are ruled out from seed 2 on."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=g) * 3
    x = x.round() if seed % 2 else x
    return x.masked_fill(torch.rand(size, generator=g) < 0.5, float("-inf")) if seed > 1 else x


LIMITS = [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (20, 0.7, 0.05), (1, 1.0, 0.1), (0, 1e-6, 0.0), (9999, 1.0, 0.0)]


@pytest.mark.parametrize("seed", range(4))
def test_truncation_keeps_the_same_tokens_whatever_other_rows_ask_for(seed: int) -> None:
    x = logits(5000, seed)  # more than one block
    settings = triton.asked([Choice(*limits, u=0.0) for limits in LIMITS], x.device)
    ours = triton.truncate(GPU, x.expand(len(LIMITS), -1).contiguous(), settings)
    for row, (top_k, top_p, min_p) in zip(ours, LIMITS, strict=True):
        assert torch.equal(row, reference.truncate(x, top_k=top_k, top_p=top_p, min_p=min_p)), (top_k, top_p, min_p)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 7, 8, 11])
def test_the_ends_of_a_floats_range_and_both_zeros_have_their_places(top_k: int) -> None:
    finite, tiny = torch.finfo(torch.float32), 1e-45
    x = torch.tensor(
        [0.0, -0.0, tiny, -tiny, finite.max, finite.min, 1.0, -1.0, -1.0, float("-inf"), float("nan"), 0.0]
    )
    ours = triton.truncate(GPU, x[None], triton.asked([Choice(top_k, 1.0, 0.0, 0.0)], x.device))[0]
    numbers = x.masked_fill(
        x.isnan(), float("-inf")
    )  # a row with a NaN is never drawn from, and its numbers keep their order
    assert torch.equal(ours, reference.truncate(numbers, top_k=top_k, top_p=1.0, min_p=0.0))


@pytest.mark.parametrize("size", [100, 5000])
def test_draws_are_the_same_tokens(size: int) -> None:
    rows = [logits(size, seed) for seed in range(4) for _ in range(5)]
    choices = [Choice(0, 1.0, 0.0, u) for _ in range(4) for u in (0.0, 0.1, 0.5, 0.999999, 1 - 2**-53)]
    assert triton.choose(GPU, rows, choices) == reference.choose(rows, choices)


def test_a_step_of_many_settings_chooses_as_the_reference_and_no_token_where_there_is_none() -> None:
    rows = [logits(700, seed) for seed in range(3)]
    rows += [torch.full((700,), float("nan")), torch.full((700,), float("-inf")), logits(700, 0)]
    choices = [Choice(*limits, u=i / 6) for i, limits in enumerate(LIMITS[:6])]
    ours = triton.choose(GPU, rows, choices)
    assert ours == reference.choose(rows, choices)
    assert ours[3:5] == [reference.NONE] * 2
    assert triton.greedy(rows[:3]) == reference.greedy(rows[:3])


def test_penalties_move_what_was_seen() -> None:
    x, g = logits(5000, 0), torch.Generator().manual_seed(1)
    seen, counts = torch.rand(5000, generator=g) < 0.1, torch.randint(0, 3, (5000,), generator=g).float()
    penalties = {"repetition": 1.3, "presence": 0.5, "frequency": 0.2}
    ours = triton.penalise(GPU, x, seen, counts, **penalties)
    torch.testing.assert_close(ours, reference.penalise(x, seen, counts, **penalties))
