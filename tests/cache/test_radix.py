"""The prefix tree against a dictionary of prefixes, under random inserts, readers, snapshots and evictions.

A prefix in the dictionary begins with its salt; two salts share nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from perilune.cache.forgotten import Forgotten
from perilune.cache.pool import Pool
from perilune.cache.radix import TREE, Match, Node, RadixTree, path_to

PAGES, ROWS = 24, 6
Text = tuple[int, ...]
Prefix = tuple[bytes, Text]


def spell(word: list[int], extra: int = 0) -> Text:
    """Each letter is a whole page of tokens; `extra` tokens of a page that is not full follow."""
    return tuple(letter * 1000 + i for letter in word for i in range(64)) + (7,) * extra


WORDS = st.lists(st.integers(0, 2), min_size=0, max_size=5)
SALTS = st.sampled_from([b"", b"one", b"other"])


class TreeAgainstDictionary(RuleBasedStateMachine):
    """`known` maps a prefix to its page, `kept` to its row; readers hold the pages of what they matched.

    `lost_pages` and `lost_states` are the prefixes that made way and have not come back.
    """

    stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.pages, self.rows = Pool(PAGES), Pool(ROWS)
        self.tree = RadixTree(self.pages, self.rows, stateful=self.stateful)
        self.tree.on_evict = self.hear
        self.known: dict[Prefix, int] = {}
        self.kept: dict[Prefix, int] = {}
        self.lost_pages: set[Prefix] = set()
        self.lost_states: set[Prefix] = set()
        self.heard: list[Prefix] = []
        self.count = 0

    readers = Bundle("readers")

    def prefixes(self, salt: bytes, tokens: Text) -> list[Prefix]:
        return [(salt, tokens[:end]) for end in range(64, len(tokens) + 1, 64)]

    def hear(self, node: Node) -> None:
        """Told before anything goes: pages and row are still held by the tree."""
        path = path_to(node)
        self.heard.append((node.salt, tuple(token for step in path for token in step.key)))
        assert all(TREE in self.pages.holders(step.page) for step in path)
        assert node.snapshot is None or TREE in self.rows.holders(node.snapshot)

    @rule(target=readers, salt=SALTS, word=WORDS, extra=st.integers(0, 63), limit=st.integers(0, 400))
    def read(self, salt: bytes, word: list[int], extra: int, limit: int) -> Any:
        tokens = spell(word, extra)
        match = self.tree.match(tokens, limit, salt)
        path = []
        for prefix in self.prefixes(salt, tokens[:limit]):
            if prefix not in self.known:
                break
            path.append(prefix)
        ends = [len(prefix[1]) for prefix in path if prefix in self.kept or not self.stateful]
        assert match.kv_tokens == 64 * len(path)
        assert match.tokens == max(ends, default=0)
        assert [node.page for node in match.reused] == [self.known[p] for p in path if len(p[1]) <= match.tokens]
        self.compare_lost(salt, tokens[:limit], match)
        self.tree.use(match)
        if not match.tokens:
            return multiple()
        self.count += 1
        self.pages.retain([node.page for node in match.reused], self.count)
        return self.count

    def compare_lost(self, salt: bytes, tokens: Text, match: Match) -> None:
        lost = self.tree.lost(tokens, len(tokens), match, salt)
        reach = match.kv_tokens
        for prefix in self.prefixes(salt, tokens)[reach // 64 :]:
            if prefix not in self.lost_pages:
                break
            reach = len(prefix[1])
        assert lost.kv_tokens == reach - match.kv_tokens
        states = [len(p[1]) for p in self.prefixes(salt, tokens[:reach]) if p in self.lost_states]
        best = max(states, default=0) if self.stateful else reach
        assert lost.tokens == max(0, best - match.tokens)

    @rule(reader=consumes(readers))
    def stop_reading(self, reader: int) -> None:
        self.pages.release(self.pages.held_by(reader), reader)

    @rule(target=readers, salt=SALTS, word=WORDS, stays=st.booleans())
    def compute(self, salt: bytes, word: list[int], stays: bool) -> Any:
        """A request with pages of its own for everything: known prefixes keep the tree's page."""
        self.count += 1
        mine = self.pages.allocate(len(word), self.count)
        assume(mine is not None)
        tokens, new = spell(word), 0
        for prefix, page in zip(self.prefixes(salt, tokens), mine or [], strict=True):
            if prefix not in self.known:
                self.known[prefix] = page
                self.lost_pages.discard(prefix)
                new += 1
        assert self.tree.insert(tokens, mine or [], salt) == new
        if stays and word:
            return self.count
        self.pages.release(mine or [], self.count)
        return multiple()

    @rule(salt=SALTS, word=WORDS, missed=st.booleans())
    def snapshot(self, salt: bytes, word: list[int], missed: bool) -> None:
        tokens = spell(word)
        got = self.rows.allocate(1, "export")
        if got is None:
            node = self.tree.spare_snapshot()
            assert node is not None
            gone = next(prefix for prefix, row in self.kept.items() if row == node.snapshot)
            if missed:
                self.tree.evict_snapshot(node)
                self.lost_states.add(gone)
                assert self.heard.pop() == gone
            else:
                self.tree.drop(node)
            del self.kept[gone]
            got = self.rows.allocate(1, "export")
        assert got is not None
        wanted = (salt, tokens) in self.known and (salt, tokens) not in self.kept
        assert self.tree.attach(tokens, len(tokens), got[0], "branch", salt) == wanted
        if wanted:
            self.kept[salt, tokens] = got[0]
            self.lost_states.discard((salt, tokens))
        self.rows.release(got, "export")

    @rule(count=st.integers(1, PAGES))
    def evict(self, count: int) -> None:
        """Exactly as many pages come free as were asked for, or as many as nobody reads; leaves nothing hanging."""
        spare = sum(self.pages.references(page) == 1 for page in self.known.values())
        assert self.tree.spare_pages() == spare
        free, snapshots = self.pages.free, len(self.kept)
        self.heard.clear()
        freed, lost = self.tree.evict(count)
        assert self.pages.free - free == freed
        assert min(count, spare) <= freed <= spare
        pages = {prefix for prefix, page in self.known.items() if page not in self.tree.pages}
        states = {prefix for prefix, row in self.kept.items() if row not in self.tree.snapshots}
        self.known = {prefix: page for prefix, page in self.known.items() if prefix not in pages}
        self.kept = {prefix: row for prefix, row in self.kept.items() if prefix not in states}
        self.lost_pages |= pages
        self.lost_states |= states
        assert snapshots - len(self.kept) == lost
        assert sorted(self.heard) == sorted(states if self.stateful else pages)
        self.heard.clear()

    @invariant()
    def tells_the_same_story(self) -> None:
        self.tree.check()
        self.pages.check("pages")
        self.rows.check("rows")
        assert set(self.tree.pages) == set(self.known.values()) == self.pages.held_by(TREE)
        assert set(self.tree.snapshots) == set(self.kept.values()) == self.rows.held_by(TREE)
        for salt, tokens in self.known:
            assert len(tokens) == 64 or (salt, tokens[:-64]) in self.known, "a page whose beginning is gone"
        assert self.kept.keys() <= self.known.keys()


class StatelessTreeAgainstDictionary(TreeAgainstDictionary):
    stateful = False


for machine in (TreeAgainstDictionary, StatelessTreeAgainstDictionary):
    machine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestTree = TreeAgainstDictionary.TestCase
TestStatelessTree = StatelessTreeAgainstDictionary.TestCase


def tree_of(*words: list[int], rows: int = ROWS) -> tuple[RadixTree, Pool]:
    """A tree whose words nobody reads any more."""
    pages = Pool(PAGES)
    tree = RadixTree(pages, Pool(rows), stateful=True)
    for word in words:
        mine = pages.allocate(len(word), "request")
        assert mine is not None
        tree.insert(spell(word), mine)
        pages.release(mine, "request")
        tree.use(tree.match(spell(word), 10**6))
    return tree, pages


def keep(tree: RadixTree, word: list[int]) -> None:
    rows = tree._rows.allocate(1, "export")
    assert rows is not None
    assert tree.attach(spell(word), 64 * len(word), rows[0], "prompt_end")
    tree._rows.release(rows, "export")


def left(tree: RadixTree, *words: list[int]) -> list[bool]:
    return [tree.find(spell(word), 64 * len(word)) is not None for word in words]


def test_pages_no_snapshot_can_use_go_first_then_the_longest_unused() -> None:
    tree, _ = tree_of([0, 0], [1, 1], [2, 2])
    keep(tree, [0])
    keep(tree, [1, 1])
    tree.evict(1)
    assert left(tree, [0, 0], [1, 1], [2, 2]) == [False, True, True]  # [0, 0] is older than [2, 2]
    tree.evict(2)
    assert left(tree, [0], [1, 1], [2]) == [True, True, False]
    tree.use(tree.match(spell([0]), 64))
    tree.evict(1)
    assert left(tree, [0], [1], [1, 1]) == [True, True, False]


def test_what_a_request_reads_is_never_freed_even_below_a_page_that_is() -> None:
    """A request computed [0, 0] itself and hung its page for [0, 0, 1] below pages of the tree's own."""
    tree, pages = tree_of([0, 0])
    mine = pages.allocate(3, "request")
    assert mine is not None
    tree.insert(spell([0, 0, 1]), mine)
    assert tree.spare_pages() == 2
    assert tree.evict(2) == (2, 0)
    tree.check()
    assert left(tree, [0], [0, 0, 1]) == [False, False]
    assert pages.held_by("request") == set(mine)
    assert pages.free == PAGES - 3


def test_the_snapshot_that_saves_least_for_its_age_goes_first() -> None:
    tree, _ = tree_of([0] * 5, [1])
    keep(tree, [0])
    keep(tree, [0, 0, 0, 0])
    keep(tree, [1])
    for _ in range(3):
        tree.use(tree.match(spell([1]), 64))
    spare = tree.spare_snapshot()
    assert spare is not None
    assert spare.length == 64  # of the two old ones, the one that saves 64 tokens and not 192
    assert spare is tree.find(spell([0]), 64)


def test_what_made_way_is_forgotten_in_the_end() -> None:
    forgotten = Forgotten(capacity=3)
    for trace in (1, 2, 1, 3, 4):
        forgotten.add(trace)
    assert [trace in forgotten for trace in (1, 2, 3, 4)] == [True, False, True, True]
    forgotten.discard(1)
    forgotten.discard(99)
    assert len(forgotten) == 2


def test_a_snapshot_about_to_be_read_is_not_spare() -> None:
    tree, _ = tree_of([0])
    keep(tree, [0])
    node = tree.find(spell([0]), 64)
    assert node is not None
    node.reads = 1
    assert tree.spare_snapshot() is None
    with pytest.raises(AssertionError, match="about to read"):
        tree.evict(1)


def test_a_page_that_is_not_full_cannot_be_shared() -> None:
    tree, pages = tree_of()
    mine = pages.allocate(1, "request")
    with pytest.raises(AssertionError, match="not full"):
        tree.insert((1, 2, 3), mine or [])


def test_check_names_a_page_the_pool_does_not_know_of() -> None:
    tree, pages = tree_of([0, 1])
    tree.check()
    pages.release([next(iter(tree.pages))], TREE)
    with pytest.raises(AssertionError, match="the pool says the tree holds pages"):
        tree.check()
