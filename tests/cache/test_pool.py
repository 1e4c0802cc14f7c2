from __future__ import annotations

from collections.abc import Callable

import pytest

from perilune.cache.pool import Pool


def test_allocation_is_all_or_nothing() -> None:
    pool = Pool(3)
    assert pool.allocate(2, "a") == [0, 1]
    assert pool.allocate(2, "b") is None
    assert (pool.used, pool.free) == (2, 1)
    assert pool.allocate(0, "b") == []
    pool.check("pages")


def test_the_last_released_is_the_first_reused() -> None:
    pool = Pool(4)
    first = pool.allocate(3, "a")
    assert first is not None
    pool.release(first[1:], "a")
    assert pool.allocate(2, "b") == first[1:]


def test_a_shared_place_is_free_only_after_its_last_holder() -> None:
    pool = Pool(2)
    ids = pool.allocate(1, "request")
    assert ids is not None
    pool.retain(ids, "tree")
    assert pool.references(ids[0]) == 2
    pool.release(ids, "request")
    assert (pool.used, pool.holders(ids[0])) == (1, frozenset({"tree"}))
    pool.release(ids, "tree")
    assert (pool.used, pool.free) == (0, 2)
    pool.check("pages")


def test_a_double_free_is_caught_and_changes_nothing() -> None:
    pool = Pool(3)
    ids = pool.allocate(2, "a")
    assert ids is not None
    pool.release(ids[:1], "a")
    with pytest.raises(AssertionError, match="held by nobody"):
        pool.release(ids, "a")
    assert pool.held_by("a") == {ids[1]}
    with pytest.raises(AssertionError, match="twice"):
        pool.release([ids[1], ids[1]], "a")
    assert pool.used == 1
    pool.check("pages")


def test_a_foreign_free_is_caught() -> None:
    pool = Pool(2)
    ids = pool.allocate(1, "a")
    assert ids is not None
    with pytest.raises(AssertionError, match="'b' releases place 0"):
        pool.release(ids, "b")
    assert pool.used == 1


def test_places_that_are_free_or_already_held_cannot_be_retained() -> None:
    pool = Pool(2)
    ids = pool.allocate(1, "a")
    assert ids is not None
    with pytest.raises(AssertionError, match="which is free"):
        pool.retain([*ids, 1], "b")
    assert pool.references(ids[0]) == 1
    with pytest.raises(AssertionError, match="already"):
        pool.retain(ids, "a")
    with pytest.raises(AssertionError, match="twice"):
        pool.retain([0, 0], "b")


def test_a_negative_allocation_is_caught() -> None:
    with pytest.raises(AssertionError):
        Pool(2).allocate(-1, "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._free.append(pool._free[0]), "free list twice"),
        (lambda pool: pool._free.append(0), "free and held"),
        (lambda pool: pool._free.pop(), "is not 4"),
        (lambda pool: pool._holders[0].clear(), "used by nobody"),
        (lambda pool: pool._free.__setitem__(0, 99), "do not exist"),
    ],
)
def test_check_names_what_broke(damage: Callable[[Pool], object], message: str) -> None:
    pool = Pool(4)
    pool.allocate(2, "a")
    pool.check("pages")
    damage(pool)
    with pytest.raises(AssertionError, match=f"pages: .*{message}"):
        pool.check("pages")
