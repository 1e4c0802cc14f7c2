"""Files that outlive a process that dies at any moment, a disk that is full, and a folder that is shared."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perilune.cache import store as module
from perilune.cache.store import Store, entries, payload_of, prune, verify

MODEL, OTHER = hashlib.sha256(b"model").digest(), hashlib.sha256(b"other").digest()
LIMIT = 10**9


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def payload(number: int, size: int = 100_000) -> bytes:
    """What entry `number` must hold."""
    return random.Random(number).randbytes(size)


def test_what_is_written_is_read_by_the_next_process(tmp_path: Path) -> None:
    assert Store(tmp_path, MODEL, LIMIT).write("page", key(1), payload(1))
    again = Store(tmp_path, MODEL, LIMIT)
    assert again.has("page", key(1))
    assert not again.has("state", key(1))
    assert again.read("page", key(1), 100_000) == payload(1)
    assert again.held_bytes == sum(entry.size for entry in entries(tmp_path)) > 100_000


def test_another_model_sees_nothing_and_a_file_moved_there_is_foreign(tmp_path: Path) -> None:
    Store(tmp_path, MODEL, LIMIT).write("page", key(1), payload(1))
    other = Store(tmp_path, OTHER, LIMIT)
    assert not other.has("page", key(1))
    (path,) = (entry.path for entry in entries(tmp_path))
    path.rename(tmp_path / OTHER.hex()[:32] / path.name)
    moved = Store(tmp_path, OTHER, LIMIT)
    assert moved.read("page", key(1), 100_000) is None
    assert moved.corrupt == 1
    assert entries(tmp_path) == []


def test_a_payload_of_the_wrong_length_is_not_used(tmp_path: Path) -> None:
    store = Store(tmp_path, MODEL, LIMIT)
    store.write("page", key(1), payload(1))
    assert store.read("page", key(1), 99_999) is None
    assert (store.corrupt, store.has("page", key(1))) == (1, False)


def test_a_file_that_went_is_no_corruption(tmp_path: Path) -> None:
    store = Store(tmp_path, MODEL, LIMIT)
    store.write("page", key(1), payload(1))
    prune(tmp_path, 0)
    assert store.read("page", key(1), 100_000) is None
    assert store.corrupt == 0
    assert store.write("page", key(1), payload(1))


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    store = Store(tmp_path, MODEL, 550_000)
    for number in range(5):
        assert store.write("page", key(number), payload(number))
        os.utime(entries(tmp_path)[-1].path, (number, number))
    assert store.read("page", key(0), 100_000)  # young again
    assert store.write("page", key(5), payload(5))
    assert store.has("page", key(0))
    assert not store.has("page", key(1))
    assert sum(entry.size for entry in entries(tmp_path)) <= 550_000
    assert not store.write("page", key(6), payload(6, 600_000))
    assert not store.full


def test_a_disk_that_refuses_turns_the_store_off_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, MODEL, LIMIT)
    store.write("page", key(0), payload(0))

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", no_space)
    for number in (1, 2, 3):
        assert not store.write("page", key(number), payload(number))
    assert store.full
    assert len([record for record in caplog.records if "No space left" in record.getMessage()]) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{key(0).hex()}.page"]
    assert store.read("page", key(0), 100_000) == payload(0)


def test_verify_deletes_what_is_broken_and_leaves_strangers_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, MODEL, LIMIT)
    for number in range(3):
        store.write("state", key(number), payload(number))
    stranger = tmp_path / MODEL.hex()[:32] / "notes.txt"
    stranger.write_text("mine")
    broken = entries(tmp_path)[1].path
    broken.write_bytes(broken.read_bytes()[:-1])
    assert verify(tmp_path) == (2, [broken])
    assert verify(tmp_path) == (2, [])
    assert prune(tmp_path, 0)[0] == 2
    assert stranger.read_text() == "mine"


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    folder = tmp_path / MODEL.hex()[:32]
    Store(tmp_path, MODEL, LIMIT)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    for pid in (dead.pid, living):
        (folder / f".writing-{pid}-x.page").write_bytes(b"half")
    Store(tmp_path, MODEL, LIMIT)
    assert [path.name for path in folder.iterdir()] == [f".writing-{living}-x.page"]


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_store import LIMIT, MODEL, key, payload
from perilune.cache.store import Store
store, number = Store(Path(sys.argv[1]), MODEL, LIMIT), 0
print("ready", flush=True)
while True:
    number += 1
    store.write("page", key(number), payload(number))
"""


def kill_while_writing(folder: Path, rounds: int) -> int:
    """Starts a writer, kills it at a random moment, checks every file; returns how many files were seen."""
    seen, moments = 0, random.Random(0)
    for _ in range(rounds):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent), *sys.path], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = Store(folder, MODEL, LIMIT)
        for entry in entries(folder):
            assert payload_of(entry.path, MODEL) is not None, "a file under its own name is whole"
        for number in range(1, len(entries(folder)) + 1):
            assert store.read("page", key(number), 100_000) == payload(number)
            seen += 1
        assert store.corrupt == 0
        assert not list(folder.rglob(".writing-*"))
        prune(folder, 0)
    return seen


def test_a_writer_killed_at_any_moment_leaves_whole_files_only(tmp_path: Path) -> None:
    assert kill_while_writing(tmp_path, 15) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_kills_leave_whole_files_only(tmp_path: Path) -> None:
    assert kill_while_writing(tmp_path, 1000) > 0
