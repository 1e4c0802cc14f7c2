"""The list of what is measured, and the tokens it is measured with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.workloads import Workload, base_tokens, longest, random_tokens, workloads


@pytest.mark.parametrize("quick", [True, False])
def test_names_are_unique_and_depths_only_grow(quick: bool) -> None:
    rows = workloads(quick)
    assert len({row.name for row in rows}) == len(rows)
    assert [row.depth for row in rows] == sorted(row.depth for row in rows)
    assert longest(rows) > max(row.depth + row.tokens for row in rows)


def test_the_quick_list_is_part_of_the_whole_one() -> None:
    assert {row.name for row in workloads(True)} < {row.name for row in workloads(False)}


def test_a_rate_counts_all_sequences_and_a_first_token_is_a_time() -> None:
    assert Workload("decode", 32, 0, 16).value(2.0) == 256
    assert Workload("prefill", 512, 4096).value(2.0) == 256
    assert Workload("first token", 100).value(2.0) == 2.0


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_shallow_base_is_the_beginning_of_a_deep_one(a: int, b: int) -> None:
    shallow, deep = sorted((a, b))
    assert base_tokens(deep, 500)[:shallow] == base_tokens(shallow, 500)


def test_tokens_depend_on_the_seed_alone_and_lie_in_the_vocabulary() -> None:
    assert random_tokens(3, 50, 10) == random_tokens(3, 50, 10) != random_tokens(4, 50, 10)
    assert set(random_tokens(3, 1000, 10)) == set(range(10))
