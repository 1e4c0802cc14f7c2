"""Which prompts' beginnings are in memory: a tree over token ids with 64-token edges. Pure integers; imports no torch.

Every salt has a root of its own, so prefixes under one salt are never found under another.

A node stands for one prefix, a multiple of 64 tokens long. It owns the page that holds its last 64 tokens, and may own
one snapshot: a row of the slot arena with the recurrent state after exactly its tokens. Pages and rows are held in
their pools under the owner TREE, so a request that reads them holds them too, and a held place is never given away.

Eviction. Pages go from the leaves up: first those below which no snapshot is left, then by last use. Snapshots go by
age per token saved: (steps since last restored) / (tokens back to the next shallower snapshot); all have one size.
Whoever keeps a lower tier is told before a prefix goes (`on_evict`), and what went is remembered by its hash for a
while (`cache/forgotten.py`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from perilune.cache.forgotten import Forgotten
from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.pool import Pool

TREE = ("prefix tree",)  # no string, so that no request's id can be equal to it


class Node:
    """One prefix of `length` tokens. `reads`: requests about to copy the snapshot; it stays until they have.

    `trace` is a hash of salt and tokens within this process. `digest`, `handed` and `saved` are the lower tiers'
    notes: the prefix's key, and whether its page was handed down and the whole prefix written to files.
    """

    __slots__ = (
        "children", "digest", "handed", "key", "length", "origin", "page", "parent", "reads", "restored", "salt",
        "saved", "snapshot", "trace", "used",
    )  # fmt: skip

    def __init__(self, parent: Node | None, key: tuple[int, ...], page: int, now: int, salt: bytes = b"") -> None:
        self.parent, self.key, self.page = parent, key, page
        self.salt: bytes = parent.salt if parent else salt
        self.trace: int = _trace(parent.trace, key) if parent else hash(salt)
        self.length: int = parent.length + PAGE_TOKENS if parent else 0
        self.children: dict[tuple[int, ...], Node] = {}
        self.snapshot: int | None = None
        self.origin = ""
        self.used = self.restored = now
        self.reads = 0
        self.digest = b""
        self.handed = self.saved = False


@dataclass(frozen=True)
class Match:
    """What is known of a prompt: `nodes` is the path; the first `tokens` tokens can be reused.

    `node` is where reuse starts, None for nothing. `kv_tokens` counts the pages found: more than `tokens` where a
    state is missing.
    """

    nodes: tuple[Node, ...] = ()
    node: Node | None = None

    @property
    def kv_tokens(self) -> int:
        return len(self.nodes) * PAGE_TOKENS

    @property
    def tokens(self) -> int:
        return self.node.length if self.node else 0

    @property
    def reused(self) -> tuple[Node, ...]:
        return self.nodes[: self.tokens // PAGE_TOKENS]


@dataclass(frozen=True)
class Lost:
    """What a prompt would have found beyond its match, had nothing made way: tokens in pages, and up to a state."""

    kv_tokens: int = 0
    tokens: int = 0


class RadixTree:
    """`stateful`: reuse needs a snapshot. Without KDA layers there is no state, and every matched page will do.

    Misuse raises AssertionError: it is a bug in perilune, never a user's.
    """

    def __init__(self, pages: Pool, rows: Pool, *, stateful: bool) -> None:
        self._pages, self._rows, self.stateful = pages, rows, stateful
        self._roots: dict[bytes, Node] = {}  # by salt
        self._nodes: dict[int, Node] = {}  # by page
        self._snapshots: dict[int, Node] = {}  # by row
        self._lost_pages, self._lost_states = Forgotten(), Forgotten()
        self._now = 0
        self.on_evict: Callable[[Node], None] | None = None

    @property
    def pages(self) -> Collection[int]:
        return self._nodes.keys()

    @property
    def snapshots(self) -> Collection[int]:
        return self._snapshots.keys()

    def match(self, tokens: Sequence[int], limit: int, salt: bytes = b"") -> Match:
        """The longest prefix of at most `limit` tokens that is known under `salt`. Changes nothing."""
        path, node, best = list[Node](), self._roots.get(salt), None
        for key in _pages_of(tokens, limit):
            node = node.children.get(key) if node else None
            if node is None:
                break
            path.append(node)
            if node.snapshot is not None or not self.stateful:
                best = node
        return Match(tuple(path), best)

    def lost(self, tokens: Sequence[int], limit: int, match: Match, salt: bytes = b"") -> Lost:
        """What of the first `limit` tokens was here beyond `match` and made way. Changes nothing."""
        trace, length, pages, state = hash(salt), 0, 0, 0
        for key in _pages_of(tokens, limit):
            trace, length = _trace(trace, key), length + PAGE_TOKENS
            if length > match.kv_tokens:
                if trace not in self._lost_pages:
                    break
                pages = length - match.kv_tokens
            if length > match.tokens and trace in self._lost_states:
                state = length
        reach = state if self.stateful else match.kv_tokens + pages
        return Lost(pages, max(0, reach - match.tokens))

    def use(self, match: Match) -> None:
        """Somebody builds on `match`: its pages, and the snapshot reuse starts from, are young again."""
        self._now += 1
        for node in match.nodes:
            node.used = self._now
        if match.node is not None:
            match.node.restored = self._now

    def find(self, tokens: Sequence[int], length: int, salt: bytes = b"") -> Node | None:
        """The node of the first `length` tokens, a multiple of 64."""
        match = self.match(tokens, length, salt)
        return match.nodes[-1] if length and match.kv_tokens == length else None

    def insert(self, tokens: Sequence[int], pages: Sequence[int], salt: bytes = b"") -> int:
        """Page i holds tokens 64 i to 64 i + 63. Where the tree has a page already it keeps its own. New nodes."""
        node, added = self._roots.setdefault(salt, Node(None, (), -1, 0, salt)), 0
        for index, page in enumerate(pages):
            key = tuple(tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS])
            assert len(key) == PAGE_TOKENS, "a page that is not full cannot be shared"
            child = node.children.get(key)
            if child is None:
                self._pages.retain([page], TREE)
                child = node.children[key] = self._nodes[page] = Node(node, key, page, self._now)
                self._lost_pages.discard(child.trace)
                added += 1
            node = child
        return added

    def attach(self, tokens: Sequence[int], length: int, row: int, origin: str, salt: bytes = b"") -> bool:
        """Row `row` holds the state after `length` tokens; the tree holds it from now on, beside its present holder.

        False, and nothing changed, if the prefix is not in the tree or has a snapshot.
        """
        node = self.find(tokens, length, salt)
        if node is None or node.snapshot is not None:
            return False
        self._lost_states.discard(node.trace)
        self._rows.retain([row], TREE)
        node.snapshot, node.origin, node.restored, node.saved = row, origin, self._now, False
        self._snapshots[row] = node
        return True

    def evict_snapshot(self, node: Node) -> None:
        """A node's snapshot makes way; whoever wants to keep it elsewhere is told first."""
        if self.on_evict is not None:
            self.on_evict(node)
        self._lost_states.add(node.trace)
        self.drop(node)

    def drop(self, node: Node) -> None:
        """Let go of a node's snapshot, which nobody will miss."""
        assert node.snapshot is not None
        del self._snapshots[node.snapshot]
        self._rows.release([node.snapshot], TREE)
        node.snapshot, node.origin = None, ""

    def reusable_nodes(self) -> list[Node]:
        """Nodes reuse can start from, without those a longer one stands for: with snapshots, or the leaves."""
        if self.stateful:
            return list(self._snapshots.values())
        return [node for node in self._nodes.values() if not node.children]

    def spare_snapshot(self) -> Node | None:
        """The snapshot to lose first; None if there is none that nobody is about to read."""
        return max((n for n in self._snapshots.values() if not n.reads), key=self._staleness, default=None)

    def _staleness(self, node: Node) -> float:
        return (self._now - node.restored + 1) / (node.length - _shallower(node))

    def spare_pages(self, keep: Collection[Node] = ()) -> int:
        """Pages that only the tree holds, without those of `keep` (a path from the root): what `evict` can free."""
        return self._pages.sole(TREE) - sum(self._spare(node) for node in keep)

    def _spare(self, node: Node) -> bool:
        return self._pages.references(node.page) == 1

    def evict(self, count: int) -> tuple[int, int]:
        """Free `count` pages, at most `spare_pages()` of them; returns (pages freed, snapshots that went with them)."""
        before = len(self._snapshots)
        freed = self._evict_leaves(count)
        if freed < count:
            freed += self._evict_subtrees(count - freed)
        return freed, before - len(self._snapshots)

    def _evict_leaves(self, count: int) -> int:
        heap = [self._rank(node) for node in self._nodes.values() if not node.children and self._spare(node)]
        heapq.heapify(heap)
        freed = 0
        while heap and freed < count:
            node = self._nodes[heapq.heappop(heap)[-1]]
            parent = node.parent
            self._remove(node)
            freed += 1
            if parent is not None and parent.parent is not None and not parent.children and self._spare(parent):
                heapq.heappush(heap, self._rank(parent))
        return freed

    def _rank(self, node: Node) -> tuple[bool, int, int, int]:
        return node.snapshot is not None, node.used, -node.length, node.page

    def _evict_subtrees(self, count: int) -> int:
        """Pages only the tree holds, above pages a request holds: it computed the same prefix into pages of its own.

        What lies below them leaves the tree with them; the request keeps its pages.
        """
        freed = 0
        while freed < count:
            node = next((n for n in self._nodes.values() if self._spare(n)), None)
            if node is None:
                break
            for below in reversed(list(_subtree(node))):
                freed += self._spare(below)
                self._remove(below)
        return freed

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert not node.children, "a page goes before the pages that follow it"
        assert not node.reads, "a snapshot goes while a request is about to read it"
        if node.snapshot is not None:
            self.evict_snapshot(node)
        elif not self.stateful and self.on_evict is not None:
            self.on_evict(node)
        self._lost_pages.add(node.trace)
        del node.parent.children[node.key], self._nodes[node.page]
        self._pages.release([node.page], TREE)

    def check(self) -> None:
        """Raises AssertionError, naming what broke, unless the tree and its pools tell the same story."""
        nodes = [node for root in self._roots.values() for node in _subtree(root) if node is not root]
        if {n.page: n for n in nodes} != self._nodes or len(nodes) != len(self._nodes):
            raise AssertionError("the tree's index of pages differs from its nodes")
        if {n.snapshot: n for n in nodes if n.snapshot is not None} != self._snapshots:
            raise AssertionError("the tree's index of snapshots differs from its nodes")
        for node in nodes:
            parent = node.parent
            if parent is None or parent.children.get(node.key) is not node or len(node.key) != PAGE_TOKENS:
                raise AssertionError(f"the node of page {node.page} hangs wrongly")
            if node.length != parent.length + PAGE_TOKENS:
                raise AssertionError(f"the node of page {node.page} is {node.length} tokens below {parent.length}")
            if node.salt != parent.salt:
                raise AssertionError(f"the node of page {node.page} hangs below another salt")
            if node.trace in self._lost_pages or (node.snapshot is not None and node.trace in self._lost_states):
                raise AssertionError(f"the node of page {node.page} is here and counts as lost")
            if node.reads and node.snapshot is None and self.stateful:
                raise AssertionError(f"a snapshot of {node.length} tokens went while a request is about to read it")
        for kind, pool, mine in (("page", self._pages, self._nodes), ("row", self._rows, self._snapshots)):
            if pool.held_by(TREE) != set(mine):
                raise AssertionError(f"the pool says the tree holds {kind}s {pool.held_by(TREE)}, it has {set(mine)}")


def _pages_of(tokens: Sequence[int], limit: int) -> Iterator[tuple[int, ...]]:
    """The whole pages among the first `limit` tokens."""
    for start in range(0, min(limit, len(tokens)) - PAGE_TOKENS + 1, PAGE_TOKENS):
        yield tuple(tokens[start : start + PAGE_TOKENS])


def _trace(above: int, page: tuple[int, ...]) -> int:
    return hash((above, page))


def _shallower(node: Node) -> int:
    """The length of the next snapshot above `node`; 0 if there is none."""
    above = node.parent
    while above is not None and above.snapshot is None:
        above = above.parent
    return above.length if above else 0


def path_to(node: Node) -> list[Node]:
    """The nodes from the first page down to `node`."""
    path: list[Node] = []
    step: Node | None = node
    while step is not None and step.parent is not None:
        path.append(step)
        step = step.parent
    return path[::-1]


def _subtree(node: Node) -> Iterator[Node]:
    """`node` and everything below it, parents first."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())
