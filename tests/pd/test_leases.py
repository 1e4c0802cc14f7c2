"""The lease book: one reader per lease, an end for every lease, and no valid verdict after a break."""

from __future__ import annotations

import pytest

from perilune.pd.compiler import Place
from perilune.pd.leases import Freed, LeaseBook, LeaseTimes, Told
from perilune.pd.messages import Gone, Manifest, Verdict

TIMES = LeaseTimes(ttl=30, prefill=100, longest=200)
PLACE = Place((1, 2), 3)


def sealed(*ids: str, now: float = 0.0) -> LeaseBook:
    book = LeaseBook(TIMES)
    for id in ids:
        book.offer(id, 100, now)
        assert book.seal(id, PLACE, b"token", now) == []
    return book


def test_claim_read_release() -> None:
    book = sealed("x")
    answer, effects = book.claim("x", "d", 1)
    assert (answer, effects) == (Manifest("x", 100, 100, True, PLACE, b"token"), [])
    assert book.release("x", "d", 2) == (Verdict("x", True), [Freed("x", "released")])
    assert len(book) == 0


def test_case_27_a_repeated_release_is_answered_as_the_first_and_frees_nothing_again() -> None:
    book = sealed("x")
    book.claim("x", "d", 1)
    book.release("x", "d", 2)
    for now in (3, 1000):
        assert book.release("x", "d", now) == (Verdict("x", True), [])
    assert book.release("x", "other", 3) == (Verdict("x", False), [])


def test_case_38_a_ticket_is_good_for_one_reader() -> None:
    book = sealed("x")
    book.claim("x", "d", 1)
    assert book.claim("x", "d", 2)[0] == Manifest("x", 100, 100, True, PLACE, b"token")
    assert book.claim("x", "e", 2)[0] == Gone("x", "another engine has claimed it")
    assert book.release("x", "e", 2)[0] == Verdict("x", False)
    assert book.abandon("x", "e", 2) == []
    assert book.release("x", "d", 3)[0].valid
    assert book.claim("x", "d", 4)[0] == Gone("x", "the lease was released")


def test_case_17_after_a_break_the_verdict_is_invalid_even_if_nobody_looked_in_between() -> None:
    book = sealed("x")
    book.claim("x", "d", 1)
    verdict, effects = book.release("x", "d", 31)
    assert verdict == Verdict("x", False)
    assert effects[0] == Freed("x", "expired")
    assert book.renew(("x",), "d", 32) == ((), [Gone("x", "the lease was expired")], [])


def test_renewals_keep_a_lease_but_not_for_ever() -> None:
    book = sealed("x")
    book.claim("x", "d", 0)
    for now in range(20, 200, 20):
        assert book.renew(("x",), "d", now) == (("x",), [], [])
        assert book.expire(now) == []
    assert book.expire(200) == [Freed("x", "expired"), Told("d", Gone("x", "the lease was expired"))]


def test_case_18_every_expired_lease_is_freed_though_the_oldest_is_renewed() -> None:
    book = sealed("a", "b", "c")
    book.claim("a", "d", 0)
    book.renew(("a",), "d", 29)
    assert book.expire(30) == [Freed("b", "expired"), Freed("c", "expired")]
    assert book.deadline == 59
    assert len(book) == 1


def test_case_19_a_renewal_of_an_unknown_id_is_answered_unknown() -> None:
    book = sealed("x")
    book.claim("x", "d", 0)
    assert book.renew(("y", "x"), "d", 1) == (("x",), [Gone("y", "no such lease is known")], [])
    assert book.renew(("x",), "e", 1) == ((), [Gone("x", "another engine has claimed it")], [])


def test_case_21_a_client_gone_at_prefill_end_frees_at_once() -> None:
    book = sealed("x")
    assert book.withdraw("x") == [Freed("x", "withdrawn")]
    assert book.withdraw("x") == []
    assert book.claim("x", "d", 1)[0] == Gone("x", "the lease was withdrawn")
    assert book.release("x", "d", 1) == (Verdict("x", False), [])
    assert book.abandon("x", "d", 1) == []


def test_case_21_a_reader_under_way_is_told() -> None:
    book = sealed("x")
    book.claim("x", "d", 0)
    assert book.withdraw("x") == [Freed("x", "withdrawn"), Told("d", Gone("x", "the lease was withdrawn"))]


def test_case_22_a_ticket_nobody_claimed_can_be_refused_at_once() -> None:
    book = sealed("x")
    assert book.abandon("x", "d", 1) == [Freed("x", "abandoned")]


def test_case_23_nothing_is_held_after_both_sides_gave_up() -> None:
    book = sealed("x")
    book.claim("x", "d", 0)
    assert [*book.abandon("x", "d", 1), *book.withdraw("x")] == [Freed("x", "abandoned")]
    assert book.expire(1000) == []
    assert len(book) == 0


def test_case_5_the_slot_is_the_one_at_seal_time() -> None:
    book = LeaseBook(TIMES)
    book.offer("x", 100, 0)
    answer, _ = book.claim("x", "d", 1)
    assert answer == Manifest("x", 100, 0, False, Place(()))
    (told,) = book.progress("x", 64, Place((1, 2), 8), 2)
    assert told == Told("d", Manifest("x", 100, 64, False, Place((1, 2), 8)))
    (told,) = book.seal("x", PLACE, b"t", 3)
    assert told == Told("d", Manifest("x", 100, 100, True, PLACE, b"t"))


def test_an_unsealed_lease_is_never_valid() -> None:
    book = LeaseBook(TIMES)
    book.offer("x", 100, 0)
    book.claim("x", "d", 1)
    assert book.release("x", "d", 2) == (Verdict("x", False), [])
    assert len(book) == 1


def test_case_33_prefilling_ends_too() -> None:
    book = LeaseBook(TIMES)
    book.offer("unclaimed", 100, 0)
    book.offer("claimed", 100, 0)
    book.claim("claimed", "d", 0)
    assert book.expire(99) == [Freed("claimed", "expired"), Told("d", Gone("claimed", "the lease was expired"))]
    assert book.expire(100) == [Freed("unclaimed", "expired")]
    assert book.progress("unclaimed", 64, PLACE, 101) == []
    assert book.seal("unclaimed", PLACE, b"", 101) == []


def test_misuse_by_the_engine_is_a_bug() -> None:
    book = sealed("x")
    for wrong in (
        lambda: book.offer("x", 1, 0),
        lambda: book.seal("x", PLACE, b"", 0),
        lambda: book.progress("x", 1, PLACE, 0),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_memory_of_what_has_ended_is_bounded() -> None:
    book = LeaseBook(TIMES)
    for n in range(5000):
        book.offer(str(n), 1, 0)
        book.withdraw(str(n))
    assert len(book._closed) == 4096
    assert book.claim("0", "d", 1)[0] == Gone("0", "no such lease is known")
