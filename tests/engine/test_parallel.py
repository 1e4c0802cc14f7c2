"""What ranks exchange: sums with the same bits on each, whatever their size, and an end to every wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from perilune.engine.parallel import LARGE, RankGroup, RankLostError

T = TypeVar("T")


def together(folder: Path, size: int, act: Callable[[RankGroup], T], widths: list[int] | None = None) -> list[T]:
    """What `act` returns on each of `size` ranks, which are threads here."""

    def rank(number: int) -> T:
        group = RankGroup(number, widths or [1] * size)
        group.connect(folder, 60)
        return act(group)

    with ThreadPoolExecutor(size) as pool:
        return [future.result(60) for future in [pool.submit(rank, n) for n in range(size)]]


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, LARGE // 8 + 1)], ids=str)  # below and above LARGE
def test_a_sum_is_taken_in_fp32_in_the_order_of_ranks(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    sums = together(tmp_path, 3, lambda group: group.sum(part(group.rank, shape, dtype)))
    expected = (part(0, shape, dtype).float() + part(1, shape, dtype).float()) + part(2, shape, dtype).float()
    for found in sums:
        assert torch.equal(found, expected.to(dtype))


def test_a_row_has_the_same_bits_in_a_small_sum_and_a_large_one(tmp_path: Path) -> None:
    """batched = alone: how ranks exchange depends on how many rows there are, the result does not."""
    rows, width = 3 * LARGE // 4000, 1000

    def act(group: RankGroup) -> tuple[torch.Tensor, torch.Tensor]:
        many = part(group.rank, (rows, width), torch.float32)
        return group.sum(many), torch.cat([group.sum(row) for row in (many[:1], many[-1:])])

    for many, ends in together(tmp_path, 4, act):
        assert torch.equal(many[[0, -1]], ends)


def test_parts_of_different_widths_come_together_on_the_first_rank(tmp_path: Path) -> None:
    widths = [32, 64, 7]

    def act(group: RankGroup) -> torch.Tensor:
        return group.collect(torch.full((2, widths[group.rank]), float(group.rank)))

    first, *others = together(tmp_path, 3, act, widths)
    assert first.tolist() == [[0.0] * 32 + [1.0] * 64 + [2.0] * 7] * 2
    assert [tuple(other.shape) for other in others] == [(2, 64), (2, 7)]


def test_what_the_first_rank_spreads_and_sends_arrives(tmp_path: Path) -> None:
    def act(group: RankGroup) -> list[int]:
        values = torch.arange(4) * (1 if group.rank == 0 else 0)
        group.spread(values)
        if group.rank == 0:
            group.send(torch.tensor([7]), 1)
        else:
            group.receive(values[2:3], 0)
        return values.tolist()

    assert together(tmp_path, 2, act) == [[0, 1, 2, 3], [0, 1, 7, 3]]


def test_a_rank_that_never_comes_ends_the_wait(tmp_path: Path) -> None:
    group = RankGroup(0, [1, 1])
    with pytest.raises(RankLostError, match="could not connect"):
        group.connect(tmp_path, 1)


def test_a_rank_that_does_not_answer_ends_the_wait(tmp_path: Path) -> None:
    groups = [RankGroup(n, [1, 1]) for n in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda group: group.connect(tmp_path, 4), groups))
    with pytest.raises(RankLostError, match="exchange between ranks failed"):
        groups[0].sum(torch.zeros(1))
