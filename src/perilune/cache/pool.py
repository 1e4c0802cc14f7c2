"""Numbered places and who holds them. Pure integers; imports no torch.

Pages and slots are each one Pool. A place may have several holders (`retain`), so that a prefix tree and requests can
share a page; it is free again when the last holder lets go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

Owner = Hashable


class Pool:
    """`count` places, numbered from 0. Misuse raises AssertionError: it is a bug in perilune, never a user's."""

    def __init__(self, count: int) -> None:
        self.total = count
        # Popped from the end: low numbers first, and the last one released is the first reused (it is still warm).
        self._free = list(range(count - 1, -1, -1))
        self._holders: dict[int, set[Owner]] = {}
        self._sole: dict[Owner, int] = {}  # places that nobody else holds, by owner

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return len(self._holders)

    def allocate(self, n: int, owner: Owner) -> list[int] | None:
        """`n` free places for `owner`, or None and no change if fewer than `n` are free."""
        if n < 0:
            raise AssertionError(f"{owner!r} asks for {n} places")
        if n > len(self._free):
            return None
        ids = [self._free.pop() for _ in range(n)]
        for i in ids:
            self._holders[i] = {owner}
        self._add_sole(owner, n)
        return ids

    def _add_sole(self, owner: Owner, count: int) -> None:
        left = self._sole.get(owner, 0) + count
        if left:
            self._sole[owner] = left
        else:
            self._sole.pop(owner, None)

    def retain(self, ids: Iterable[int], owner: Owner) -> None:
        """`owner` holds these used places too. All or none: nothing changes if one of them cannot be retained."""
        ids = list(ids)
        for i in ids:
            if i not in self._holders:
                raise AssertionError(f"{owner!r} retains place {i}, which is free")
            if owner in self._holders[i]:
                raise AssertionError(f"{owner!r} holds place {i} already")
        if len(set(ids)) != len(ids):
            raise AssertionError(f"{owner!r} names a place twice: {ids}")
        for i in ids:
            holders = self._holders[i]
            if len(holders) == 1:
                self._add_sole(next(iter(holders)), -1)
            holders.add(owner)

    def release(self, ids: Iterable[int], owner: Owner) -> None:
        """`owner` lets go of these places; those that nobody else holds become free. All or none."""
        ids = list(ids)
        for i in ids:
            if owner not in self._holders.get(i, ()):
                raise AssertionError(f"{owner!r} releases place {i}, held by {self.holders(i) or 'nobody'}")
        if len(set(ids)) != len(ids):
            raise AssertionError(f"{owner!r} names a place twice: {ids}")
        for i in reversed(ids):
            holders = self._holders[i]
            holders.remove(owner)
            if not holders:
                self._add_sole(owner, -1)
                del self._holders[i]
                self._free.append(i)
            elif len(holders) == 1:
                self._add_sole(next(iter(holders)), 1)

    def holders(self, place: int) -> frozenset[Owner]:
        """Who holds `place`; empty if it is free."""
        return frozenset(self._holders.get(place, ()))

    def references(self, place: int) -> int:
        return len(self._holders.get(place, ()))

    def sole(self, owner: Owner) -> int:
        """How many places `owner` holds and nobody else does."""
        return self._sole.get(owner, 0)

    def held_by(self, owner: Owner) -> set[int]:
        """Every place `owner` holds. Looks at all used places: for checks, not for the hot path."""
        return {i for i, holders in self._holders.items() if owner in holders}

    def check(self, name: str) -> None:
        """Raises AssertionError, naming what broke, unless every place is either free once or held by someone."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError(f"{name}: a place is in the free list twice")
        if both := free & self._holders.keys():
            raise AssertionError(f"{name}: places {sorted(both)} are free and held")
        if len(free) + len(self._holders) != self.total:
            raise AssertionError(f"{name}: {len(free)} free + {len(self._holders)} used is not {self.total}")
        if stray := {i for i in free | self._holders.keys() if not 0 <= i < self.total}:
            raise AssertionError(f"{name}: places {sorted(stray)} do not exist")
        if unheld := [i for i, holders in self._holders.items() if not holders]:
            raise AssertionError(f"{name}: places {unheld} are used by nobody")
        sole = Counter(next(iter(holders)) for holders in self._holders.values() if len(holders) == 1)
        if sole != self._sole:
            raise AssertionError(f"{name}: counted as held by one alone are {self._sole}, they are {dict(sole)}")
