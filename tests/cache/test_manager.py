from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from perilune.cache.budget import plan_cache
from perilune.cache.geometry import CacheGeometry, LatentBlock, StateBlock, pages_for
from perilune.cache.manager import CacheManager
from perilune.cache.prefix import PrefixSettings

GEOMETRY = CacheGeometry(
    dtype="bfloat16",
    tp=1,
    latents=(LatentBlock(1, 10),),
    states=(StateBlock(0, 4, 16, 3, 0, 4096, 4096, 1152),),
    slot_bytes=5248,
)
PLAN = plan_cache(GEOMETRY, max_context=256, max_running=3)  # 3 slots, 12 pages


class ManagerAgainstDictionary(RuleBasedStateMachine):
    """The manager beside a model that knows only each request's tokens, and page counts follow from them."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = CacheManager(PLAN)
        self.tokens: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.count = 0

    requests = Bundle("requests")

    @property
    def free_pages(self) -> int:
        return PLAN.pages - sum(pages_for(tokens) for tokens in self.tokens.values())

    @rule(target=requests, tokens=st.integers(0, 300))
    def admit(self, tokens: int) -> Any:
        fits = len(self.tokens) < PLAN.slots and pages_for(tokens) <= self.free_pages
        assert self.manager.can_admit(tokens) == fits
        name = f"r{self.count}"
        self.count += 1
        if not fits:
            with pytest.raises(AssertionError):
                self.manager.admit(name, tokens)
            return multiple()
        slot = self.manager.admit(name, tokens)
        assert 0 <= slot < PLAN.slots
        assert slot not in {self.manager.slot(other) for other in self.tokens}
        self.tokens[name] = tokens
        self.tables[name] = self.manager.pages(name)
        return name

    @rule(target=requests, name=consumes(requests))
    def rename(self, name: str) -> str:
        other = f"r{self.count}"
        self.count += 1
        slot = self.manager.slot(name)
        self.manager.rename(name, other)
        assert self.manager.slot(other) == slot
        self.tokens[other], self.tables[other] = self.tokens.pop(name), self.tables.pop(name)
        return other

    @rule(name=requests, tokens=st.integers(0, 900))
    def grow(self, name: str, tokens: int) -> None:
        extra = pages_for(tokens) - pages_for(self.tokens[name])
        before = self.manager.stats()
        grew = self.manager.grow(name, tokens)
        assert grew == (extra <= self.free_pages)
        if grew:
            self.tokens[name] = max(self.tokens[name], tokens)
        else:
            assert self.manager.stats() == before
        table = self.manager.pages(name)
        assert table[: len(self.tables[name])] == self.tables[name]
        self.tables[name] = table

    @rule(name=consumes(requests))
    def free(self, name: str) -> None:
        self.manager.free(name)
        del self.tokens[name], self.tables[name]
        with pytest.raises(AssertionError, match="holds no cache"):
            self.manager.pages(name)

    @invariant()
    def books_are_right(self) -> None:
        self.manager.check()
        stats = self.manager.stats()
        assert stats.requests == stats.slots_used == len(self.tokens)
        assert stats.tokens == sum(self.tokens.values())
        assert stats.pages_free == self.free_pages
        assert stats.pages_used + stats.pages_free == stats.pages_total == PLAN.pages
        assert stats.slots_used + stats.slots_free == stats.slots_total == PLAN.slots
        assert stats.bytes_used == stats.pages_used * PLAN.page_bytes + stats.slots_used * PLAN.slot_bytes
        assert stats.bytes_used <= stats.bytes_total == PLAN.total_bytes
        pages = [page for name in self.tokens for page in self.manager.pages(name)]
        assert len(set(pages)) == len(pages) == stats.pages_used


ManagerAgainstDictionary.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestManagerAgainstDictionary = ManagerAgainstDictionary.TestCase


def test_a_request_is_admitted_once() -> None:
    manager = CacheManager(PLAN)
    manager.admit("a", 1)
    with pytest.raises(AssertionError, match="admitted already"):
        manager.admit("a", 1)
    manager.check()


def test_the_page_table_returned_is_a_copy() -> None:
    manager = CacheManager(PLAN)
    manager.admit("a", 128)
    manager.pages("a").clear()
    assert len(manager.pages("a")) == 2
    manager.check()


def test_slots_limit_admission_when_pages_are_plenty() -> None:
    manager = CacheManager(PLAN)
    for name in "abc":
        manager.admit(name, 1)
    assert not manager.can_admit(0)
    manager.free("b")
    assert manager.can_admit(64 * 10)
    assert not manager.can_admit(64 * 10 + 1)


def test_a_request_grows_to_the_last_page_and_no_further() -> None:
    manager = CacheManager(PLAN)
    manager.admit("a", 0)
    assert manager.grow("a", 64 * PLAN.pages)
    assert not manager.grow("a", 64 * PLAN.pages + 1)
    manager.free("a")
    assert manager.stats().bytes_used == 0


def _share_a_page(manager: CacheManager) -> None:
    manager._held["b"].pages.append(manager.pages("a")[0])


def _lose_a_page(manager: CacheManager) -> None:
    manager._held["a"].pages.pop()


def _share_a_slot(manager: CacheManager) -> None:
    manager._held["b"].slot = manager.slot("a")


def _forget_a_request(manager: CacheManager) -> None:
    del manager._held["b"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_share_a_page, "in the tables of 'a' and 'b'"),
        (_lose_a_page, "1 pages for 128 tokens"),
        (_share_a_slot, "slot 0 belongs to 'a' and 'b'"),
        (_forget_a_request, "page 2 is held by {'b'}"),
    ],
)
def test_check_names_what_broke_in_the_tables(damage: Callable[[CacheManager], None], message: str) -> None:
    manager = CacheManager(PLAN)
    manager.admit("a", 128)
    manager.admit("b", 1)
    manager.check()
    damage(manager)
    with pytest.raises(AssertionError, match=message):
        manager.check()


def test_pages_without_a_state_serve_whoever_gets_its_state_from_elsewhere() -> None:
    manager = CacheManager(PLAN, PrefixSettings(True, 8192))
    prompt = tuple(range(150))
    manager.admit("a", 151, prompt)
    manager.commit("a", 150)  # no state was exported
    manager.free("a")
    kept = manager.known(prompt).nodes
    assert len(kept) == 2
    assert manager.known(prompt).tokens == 0
    assert manager.can_admit(151, prompt, pages_only=True)
    manager.admit("b", 151, prompt, pages_only=True)
    assert manager.cached("b") == 128
    assert manager.source("b") is None
    assert manager.pages("b")[:2] == [node.page for node in kept]
    manager.check()
    whole = tuple(range(128))
    manager.admit("c", 129, whole, pages_only=True)
    assert manager.cached("c") == 128  # all of it: nobody needs logits of the last token
    manager.rename("c", "c in quarantine")
    manager.free("c in quarantine")
    manager.free("b")
    manager.check()
