"""Where snapshots are taken: on chunk boundaries, never where they cannot serve, the most useful first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.cache.snapshots import branch, head, positions, reusable


@pytest.mark.parametrize(
    ("prompt", "most"), [(0, 0), (1, 0), (64, 0), (65, 64), (128, 64), (129, 128), (1000, 960), (1024, 960)]
)
def test_at_least_one_token_is_left_to_compute(prompt: int, most: int) -> None:
    assert reusable(prompt) == most


@pytest.mark.parametrize(
    ("prompt", "place"),
    [(1, 0), (64, 0), (127, 0), (128, 64), (600, 512), (1024, 896), (4196, 3648), (100_000, 99_456)],
)
def test_the_head_leaves_out_an_eighth_at_most(prompt: int, place: int) -> None:
    assert head(prompt) == place


def test_a_branch_is_worth_a_row_from_128_recomputed_tokens() -> None:
    assert branch(192, 64) == 192
    assert branch(192, 128) == 0
    assert branch(0, 0) == 0


def test_the_prompts_end_comes_first_and_intervals_only_before_it_is_reached() -> None:
    assert positions(1000, 320, 128, 0, 1000) == [(960, "prompt_end"), (320, "branch"), (896, "head")]
    assert positions(1000, 0, 128, 256, 512) == [(512, "interval"), (384, "interval")]
    assert positions(1000, 320, 128, 256, 384) == [(320, "branch"), (384, "interval")]
    assert positions(63, 0, 64, 0, 63) == []


def test_marks_come_before_guesses_and_are_rounded_down_to_whole_pages() -> None:
    found = positions(1000, 320, 128, 0, 1000, marks=(200, 255, 320, 40, 10**6))
    assert found == [(960, "prompt_end"), (192, "mark"), (320, "mark"), (896, "head")]
    assert positions(1000, 0, 1024, 192, 512, marks=(200, 448)) == [(448, "mark")]


@given(st.integers(1, 5000), st.integers(0, 70), st.integers(1, 20), st.integers(0, 70), st.integers(1, 600))
def test_positions_are_boundaries_inside_what_is_computed(
    prompt: int, branch_at: int, interval: int, start: int, count: int
) -> None:
    start = min(start * 64, (prompt - 1) // 64 * 64)
    end = min(prompt, start + count)
    found = positions(prompt, min(branch_at * 64, reusable(prompt)), interval * 64, start, end)
    places = [place for place, _ in found]
    assert len(set(places)) == len(places)
    assert all(start < place <= end and place % 64 == 0 for place in places)
