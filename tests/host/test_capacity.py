"""Page arithmetic, classes and the proposed limit, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.host.capacity import MemoryClass, capacity, classify, is_half, largest_limit, pages, propose_limit
from perilune.units import GIB, MIB

SIZES = st.integers(min_value=0, max_value=512 * GIB)


@pytest.mark.parametrize(
    ("gib", "count"),
    [(96, 25165824), (100, 26214400), (104, 27262976), (110, 28835840), (112, 29360128), (115, 30146560),
     (120, 31457280), (124, 32505856), (128, 33554432)],
)  # fmt: skip
def test_a_gib_is_262144_pages(gib: int, count: int) -> None:
    assert pages(gib * GIB) == count == gib * 262_144


@given(SIZES, SIZES, SIZES, SIZES)
def test_vram_and_gtt_are_never_added(vram: int, gtt: int, limit: int, memory: int) -> None:
    assert capacity(vram, gtt, limit, memory) <= max(vram, gtt)


def test_capacity_is_the_larger_pool_and_leaves_the_system_its_reserve() -> None:
    assert capacity(96 * GIB, 16 * GIB, 16 * GIB, 32 * GIB) == 96 * GIB
    assert capacity(512 * MIB, 110 * GIB, 110 * GIB, 125 * GIB) == 110 * GIB
    assert capacity(512 * MIB, 124 * GIB, 124 * GIB, 125 * GIB) == 121 * GIB
    assert capacity(512 * MIB, 1 * GIB, 1 * GIB, 2 * GIB) == 0


@pytest.mark.parametrize(
    ("vram", "gtt", "limit", "heap", "memory", "found"),
    [
        (96, 16, 16, 16, 32, MemoryClass.CAP15),
        (90, 18, 18, 18, 36, MemoryClass.CAP15),
        (89.9, 18, 18, 18, 36, MemoryClass.CAP31),
        (64, 31, 31, 31, 62, MemoryClass.CAP31),
        (64, 115, 31, 31, 62, MemoryClass.CAP31),
        (60, 31, 31, 31, 62, MemoryClass.CAP31),
        (59.9, 32, 32, 32, 64, MemoryClass.CAP62),
        (0.5, 62.8, 62.8, 62.8, 125.6, MemoryClass.CAP62),
        (8, 60, 60, 60, 120, MemoryClass.CAP62),
        (64, 31, 31, 64, 62, MemoryClass.FWRESERVED),
        (96, 16, 16, 96, 32, MemoryClass.FWRESERVED),
        (0.5, 110, 110, 110, 125.6, MemoryClass.UNIFIED),
        (8, 100, 110, 100, 125.6, MemoryClass.UNIFIED),
        (0.5, 128, 128, 128, 125.6, MemoryClass.OVERCOMMIT),
        (0.5, 62.8, 128, 62.8, 125.6, MemoryClass.OVERCOMMIT),
        (0.5, 110, 110, 40, 125.6, None),
        (64, 62, 62, 64, 128, MemoryClass.FWRESERVED),  # half of the memory by chance, but it is the carve-out
    ],
)
def test_classes(vram: float, gtt: float, limit: float, heap: float, memory: float, found: MemoryClass | None) -> None:
    assert classify(*(int(size * GIB) for size in (vram, gtt, limit, heap, memory))) is found


def test_half_is_48_to_52_percent() -> None:
    assert [is_half(share * GIB, 100 * GIB) for share in (47, 48, 50, 52, 53)] == [False, True, True, True, False]


def test_a_limit_is_proposed_that_the_system_survives() -> None:
    big = int(125.6 * GIB)
    assert propose_limit(big).pages == 28835840
    assert propose_limit(big, 100 * GIB).pages == 28835840, "a limit reserves nothing, so it is never below the default"
    plan = propose_limit(big, 113 * GIB + 1)
    assert (plan.size, plan.fits) == (114 * GIB, True)
    edge = propose_limit(big, largest_limit(big))
    assert (edge.size, edge.fits) == (119 * GIB, True)
    over = propose_limit(big, largest_limit(big) + 1)
    assert (over.size, over.fits) == (119 * GIB, False)
    assert propose_limit(62 * GIB).size == 56 * GIB


@given(st.integers(min_value=0, max_value=1024 * GIB), st.none() | SIZES)
def test_no_proposal_reaches_the_systems_share(memory: int, plan: int | None) -> None:
    proposal = propose_limit(memory, plan)
    assert 0 <= proposal.size <= max(0, min(memory * 0.95, memory - 6 * GIB))
    assert proposal.size == proposal.pages * 4096
    assert proposal.fits is (plan is None or plan <= largest_limit(memory))
