"""What the tiers below the arenas keep: host memory within its limit, files without a step ever waiting for them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from perilune.cache.disk import DiskTier
from perilune.cache.host import HostTier
from perilune.cache.store import Store, entries
from perilune.cache.tier import Kind, Payload, Rate

MODEL = hashlib.sha256(b"model").digest()
KEYS = [hashlib.sha256(str(number).encode()).digest() for number in range(8)]
LIMIT = 100


class Shelf(HostTier):
    """A tier below that refuses when told to."""

    refuses = False

    def write(self, kind: Kind, key: bytes, payload: Payload) -> bool:
        return not self.refuses and super().write(kind, key, payload)


class HostAgainstDictionary(RuleBasedStateMachine):
    """`kept` has the longest unused first; `below` everything that was ever pushed down or saved."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf(10**6)
        self.host = HostTier(LIMIT, self.shelf)
        self.kept: dict[bytes, int] = {}
        self.below: set[bytes] = set()

    @rule(number=st.integers(0, 7), size=st.integers(1, 120), refuses=st.booleans())
    def write(self, number: int, size: int, refuses: bool) -> None:
        key, self.shelf.refuses = KEYS[number], refuses
        taken = self.host.write("page", key, bytearray(size))
        assert taken == (key in self.kept or size <= LIMIT)
        if not taken:
            return
        size = self.kept.pop(key, size)
        while sum(self.kept.values()) + size > LIMIT:
            gone = next(iter(self.kept))
            del self.kept[gone]
            if not refuses:
                self.below.add(gone)
        self.kept[key] = size

    @rule(number=st.integers(0, 7), length=st.integers(1, 120))
    def read(self, number: int, length: int) -> None:
        key = KEYS[number]
        found = self.host.read("page", key, length)
        assert (found is not None) == (self.kept.get(key) == length)
        if found is not None:
            assert len(found) == length
            self.kept[key] = self.kept.pop(key)

    @rule(number=st.integers(0, 7))
    def touch(self, number: int) -> None:
        self.host.touch("page", KEYS[number])
        if KEYS[number] in self.kept:
            self.kept[KEYS[number]] = self.kept.pop(KEYS[number])

    @rule(refuses=st.booleans())
    def save_all(self, refuses: bool) -> None:
        self.shelf.refuses = refuses
        while self.host.save_one():
            pass
        if not refuses:
            self.below |= self.kept.keys()

    @invariant()
    def tells_the_same_story(self) -> None:
        self.host.check()
        assert list(self.host._entries) == [("page", key) for key in self.kept]
        assert self.host.held_bytes == sum(self.kept.values()) <= LIMIT
        assert {key for _, key in self.shelf._entries} == self.below


HostAgainstDictionary.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHostAgainstDictionary = HostAgainstDictionary.TestCase


class Slow(Store):
    """A disk that takes its time: nothing is written until `go` is set."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.go = threading.Event()

    def write(self, kind: Kind, key: bytes, payload: bytes | Payload) -> bool:
        assert self.go.wait(30)
        return super().write(kind, key, payload)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    store = Slow(tmp_path, MODEL, 10**6)
    yield store
    store.go.set()


def test_nobody_waits_for_a_slow_disk_and_what_waits_can_be_read(slow: Slow) -> None:
    tier = DiskTier(slow, queue_bytes=250)
    assert tier.write("page", KEYS[0], bytearray(b"a" * 100))
    assert tier.write("state", KEYS[0], bytearray(b"b" * 100))
    assert tier.write("page", KEYS[0], bytearray(b"a" * 100)), "it is there already"
    assert not tier.takes(51)
    assert not tier.write("page", KEYS[1], bytearray(51))
    assert tier.named()["disk_refused_bytes_total"] == 51
    assert tier.named()["disk_queued_bytes"] == 200
    assert entries(slow._root) == []
    assert tier.read("page", KEYS[0], 100) == b"a" * 100
    assert tier.read("page", KEYS[0], 99) is None
    slow.go.set()
    assert tier.drain()
    assert not tier.drain()
    assert tier.named()["disk_queued_bytes"] == 0
    assert len(entries(slow._root)) == 2
    assert tier.read("state", KEYS[0], 100) == b"b" * 100
    assert tier.write("page", KEYS[1], bytearray(51))
    assert tier.drain()


def test_the_writing_thread_ends_with_its_work_and_comes_back(slow: Slow) -> None:
    tier = DiskTier(slow)
    slow.go.set()
    for number in range(4):
        before = threading.active_count()
        assert tier.write("page", KEYS[number], bytearray(10))
        thread = tier._thread
        tier.drain()
        if thread is not None:
            thread.join(10)
        assert tier._thread is None
        assert threading.active_count() <= before


def test_a_disk_that_fails_under_way_loses_entries_and_never_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, MODEL, 10**6)
    tier = DiskTier(store)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for number in range(5):
            tier.write("page", KEYS[number], bytearray(10))
        tier.drain()
    assert store.full
    assert not tier.takes(1)
    assert not tier.write("page", KEYS[5], bytearray(1))
    assert not any(tier.has("page", key) for key in KEYS)


def test_what_is_larger_than_the_folder_is_not_taken(tmp_path: Path) -> None:
    tier = DiskTier(Store(tmp_path, MODEL, 1000))
    assert tier.takes(900)
    assert not tier.takes(901)


def test_a_rate_follows_what_was_seen_last() -> None:
    rate = Rate()
    assert rate.per_second == 0
    rate.note(100, 1)
    rate.note(0, 5)
    rate.note(5, 0)
    assert rate.per_second == 100
    rate.note(1, 0.1)  # a small piece says little
    assert 80 < rate.per_second < 100
    for _ in range(20):
        rate.note(10, 1)
    assert rate.per_second == pytest.approx(10, rel=0.01)
