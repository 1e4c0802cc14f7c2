from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.server.merge import merge


class Source:
    """Yields `items`, then fails or ends; remembers whether it was closed after it had started."""

    def __init__(self, items: list[int], failure: Exception | None = None, *, endless: bool = False) -> None:
        self.items, self.failure, self.endless = items, failure, endless
        self.open = 0

    async def run(self) -> AsyncGenerator[int, None]:
        self.open += 1
        try:
            for item in self.items:
                await asyncio.sleep(0)
                yield item
            if self.failure:
                raise self.failure
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.open -= 1


@given(st.lists(st.lists(st.integers(), max_size=5), min_size=1, max_size=5))
def test_every_item_comes_once_and_in_its_sources_order(lists: list[list[int]]) -> None:
    async def collect() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in lists]
        async for number, item in merge([Source(items).run() for items in lists]):
            found[number].append(item)
        return found

    assert asyncio.run(collect()) == lists


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_early_closes_every_source(count: int) -> None:
    sources = [Source([1, 2], endless=True) for _ in range(count)]
    async with aclosing(merge([source.run() for source in sources])) as merged:
        async for _ in merged:
            break
    assert [source.open for source in sources] == [0] * count


async def test_one_failure_comes_through_and_closes_the_others() -> None:
    sources = [Source([1], endless=True), Source([1], ValueError("broken"))]
    with pytest.raises(ValueError, match="broken"):
        async for _ in merge([source.run() for source in sources]):
            pass
    assert [source.open for source in sources] == [0, 0]


async def test_a_cancelled_reader_closes_every_source() -> None:
    sources = [Source([1], endless=True) for _ in range(2)]

    async def read() -> None:
        async with aclosing(merge([source.run() for source in sources])) as merged:
            async for _ in merged:
                pass

    task = asyncio.create_task(read())
    while not all(source.open for source in sources):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [source.open for source in sources] == [0, 0]
