"""The books against themselves: what requests list, what the tree lists, what the pools say. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.held import Held
from perilune.cache.pool import Pool
from perilune.cache.radix import TREE, RadixTree


def audit(requests: Mapping[str, Held], pages: Pool, rows: Pool, tree: RadixTree) -> None:
    """Raises AssertionError, naming what broke. Tests call it after every step.

    In each pool free + used = total; what tables and tree list is what the pools say, each page in one table only
    unless the tree shares it; every table covers its tokens; nothing is held for a request that is gone.
    """
    pages.check("pages")
    rows.check("slots")
    tree.check()
    in_tables: dict[int, set[str]] = {}
    in_slots: dict[int, set[str]] = {}
    for name, held in requests.items():
        for page in held.pages:
            sharing = in_tables.setdefault(page, set())
            if sharing and page not in tree.pages:
                raise AssertionError(f"page {page} is in the tables of {min(sharing)!r} and {name!r}")
            sharing.add(name)
        for row in held.rows:
            if row in in_slots:
                raise AssertionError(f"slot {row} belongs to {min(in_slots[row])!r} and {name!r}")
            in_slots[row] = {name}
        if len(held.pages) * PAGE_TOKENS < held.tokens:
            raise AssertionError(f"{name!r} has {len(held.pages)} pages for {held.tokens} tokens")
        _check_shared(name, held, tree)
    _compare("page", pages, in_tables, tree.pages)
    _compare("slot", rows, in_slots, tree.snapshots)


def _check_shared(name: str, held: Held, tree: RadixTree) -> None:
    """What a request found in the tree is still there, at the same place of the same tokens."""
    path = tree.match(held.prompt, held.cached, held.salt).nodes
    if [node.page for node in path] != held.pages[: held.cached // PAGE_TOKENS]:
        raise AssertionError(f"the first {held.cached} tokens of {name!r} are no longer those of the tree")


def _compare(kind: str, pool: Pool, seen: Mapping[int, set[str]], tree: Collection[int]) -> None:
    for place in range(pool.total):
        wanted = {*seen.get(place, ()), *((TREE,) if place in tree else ())}
        if pool.holders(place) != wanted:
            raise AssertionError(f"{kind} {place} is held by {set(pool.holders(place))}, the tables say {wanted}")
