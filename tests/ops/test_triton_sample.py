"""Sampling in Triton's interpreter picks what the reference picks."""

from __future__ import annotations

import pytest
import torch

from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu
from perilune.ops.sample import reference, triton

GPU = Gpu(ARCHES["gfx1151"])


def logits(size: int, seed: int) -> torch.Tensor:
    """With ties at odd seeds, and tokens that are ruled out from seed 2 on."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=g) * 3
    x = x.round() if seed % 2 else x
    return x.masked_fill(torch.rand(size, generator=g) < 0.5, float("-inf")) if seed > 1 else x


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (20, 0.7, 0.05), (1, 1.0, 0.1), (0, 1e-6, 0)],
)
def test_truncation_keeps_the_same_tokens(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    x = logits(5000, seed)  # more than one block
    ours = triton.truncate(GPU, x, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.equal(ours, reference.truncate(x, top_k=top_k, top_p=top_p, min_p=min_p))


@pytest.mark.parametrize("seed", range(4))
def test_draws_are_the_same_tokens(seed: int) -> None:
    for size in (100, 5000):
        x = logits(size, seed)
        for u in (0.0, 0.1, 0.5, 0.999999, 1 - 2**-53):
            assert triton.draw(GPU, x, u) == reference.draw(x, u)


def test_penalties_move_what_was_seen() -> None:
    x, g = logits(5000, 0), torch.Generator().manual_seed(1)
    seen, counts = torch.rand(5000, generator=g) < 0.1, torch.randint(0, 3, (5000,), generator=g).float()
    penalties = {"repetition": 1.3, "presence": 0.5, "frequency": 0.2}
    ours = triton.penalise(GPU, x, seen, counts, **penalties)
    torch.testing.assert_close(ours, reference.penalise(x, seen, counts, **penalties))
