"""One number whatever computes it: zlib has the definition."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.ops.native import Native
from perilune.pd.checksum import Checksum
from perilune.pd.compiler import POOL_SHIFT
from perilune.pd.errors import PlanError
from perilune.pd.memory import Memory

SIZE = 5000
_NATIVE = Native.load()
BLOCKS = [0, *({64, _NATIVE.module.crc32_block()} if isinstance(_NATIVE, Native) else ())]
"""As zlib does it, and however many bytes at a time this processor can; one that takes 256 can take 64."""


def checksum(block: int) -> Checksum:
    made = Checksum()
    if block > made._block:
        pytest.skip("this processor cannot")
    made._block = block
    return made


@pytest.fixture(scope="module")
def memory() -> Memory:
    random = np.random.default_rng(1)
    return Memory([random.integers(0, 256, SIZE, np.uint8) for _ in range(2)])


@pytest.mark.parametrize("block", BLOCKS)
def test_every_length_around_a_block_has_zlibs_number(memory: Memory, block: int) -> None:
    count = checksum(block)
    for length in (*range(4 * block + 70), SIZE - 3):
        text = memory.pools[0][3 : 3 + length].tobytes()
        assert count(memory, np.array([3]), np.array([length])) == zlib.crc32(text), length


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, SIZE - 1300), st.integers(0, 1300)), max_size=12))
def test_runs_are_one_text(memory: Memory, runs: list[tuple[int, int, int]]) -> None:
    text = b"".join(memory.pools[pool][at : at + length].tobytes() for pool, at, length in runs)
    address = np.array([(pool << POOL_SHIFT) + at for pool, at, _ in runs], np.int64)
    length = np.array([length for _, _, length in runs], np.int64)
    assert Checksum()(memory, address, length) == zlib.crc32(text)


def test_columns_of_a_request_are_read_as_they_lie(memory: Memory) -> None:
    table = np.array([[0, 700], [900, 1300]])
    text = memory.pools[0][:700].tobytes() + memory.pools[0][900:2200].tobytes()
    assert Checksum()(memory, table[:, 0], table[:, 1]) == zlib.crc32(text)


@pytest.mark.parametrize("block", BLOCKS)
def test_no_byte_outside_the_memory_is_read(memory: Memory, block: int) -> None:
    with pytest.raises(PlanError):
        checksum(block)(memory, np.array([SIZE - 1]), np.array([2]))


def test_without_the_extension_zlib_counts(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Native, "load", lambda: "no C++ kernels in this build")
    assert Checksum()(memory, np.array([0]), np.array([SIZE])) == zlib.crc32(memory.pools[0].tobytes())
