"""The index follows the log, whatever became of it: gone, damaged, older, out of space; a kill; several writers."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store_and_compare import entry

from perilune.bench.index import Index
from perilune.bench.load.record import Record
from perilune.bench.store import Store
from perilune.errors import ConfigError

FAILED = {"status": "failed", "reasons": ["x"], "notes": []}
FORK = multiprocessing.get_context("fork")


def filled(folder: Path) -> Store:
    store = Store(folder)
    for repeat in range(3):
        store.append(entry(repeat=repeat, speed=100.0 + repeat), [Record(id=repeat, intended=0.0)])
    store.append(entry("g", verdict=FAILED), [])
    return store


def check(store: Store) -> None:
    """Every question has the answer the log gives."""
    assert store.done() == {("f", 0), ("f", 1), ("f", 2)}
    assert [e["metrics"]["output_per_s"] for e in store.entries()] == [100.0, 101.0, 102.0, 100.0]
    assert [r["output_per_s"] for r in store.listed("output_per_s", "valid")] == [100.0, 101.0, 102.0]
    assert [(r["fingerprint"], r["names"]) for r in store.listed("none", "failed")] == [("g", {"conc": 4})]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def older(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 0")


def without_a_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE runs")


@pytest.mark.parametrize("harm", [Path.unlink, emptied, nonsense, torn, older, without_a_table])
def test_an_index_that_is_no_good_is_made_anew_from_the_log(harm: Callable[[Path], None], tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = tmp_path / "index.sqlite"
    for rest in tmp_path.glob("index.sqlite-*"):
        rest.unlink()
    harm(path)
    check(Store(tmp_path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.append(entry("h"), [])
    assert ("h", 0) in Store(tmp_path).done()


def test_another_log_in_its_place_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path)
    log = tmp_path / "runs.jsonl"
    log.write_text("".join(json.dumps(entry(name, speed=7.0)) + "\n" for name in "abcdefgh"))
    assert {key for key, _ in Store(tmp_path).done()} == set("abcdefgh")
    log.write_text(json.dumps(entry("z")) + "\n")
    assert Store(tmp_path).done() == {("z", 0)}
    log.unlink()
    assert Store(tmp_path).entries() == []


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / "runs.jsonl").open("a") as log:
        log.write('{"fingerprint": 1}\n')
    with pytest.raises(ConfigError, match=r"runs\.jsonl: what begins at byte \d+ is no run"):
        Store(tmp_path).entries()


def test_killed_after_the_log_and_before_the_index_nothing_is_lost(tmp_path: Path) -> None:
    filled(tmp_path)
    child = FORK.Process(target=_killed, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (4,), "the index had not seen it"
    assert ("killed", 0) in Store(tmp_path).done()
    assert Store(tmp_path).records(entry("killed")) == [Record(id=9, intended=0.0)]


def _killed(folder: Path) -> NoReturn:
    Index.follow = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    Store(folder).append(entry("killed"), [Record(id=9, intended=0.0)])
    raise AssertionError("it lived")


def test_killed_within_the_transaction_the_next_look_takes_it_in_whole(tmp_path: Path) -> None:
    filled(tmp_path)
    child = FORK.Process(target=_killed_within, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    store = Store(tmp_path)
    assert [r["fingerprint"] for r in store.listed("output_per_s")].count("killed") == 1
    assert store.listed("output_per_s")[-1]["output_per_s"] == 5.0


def _killed_within(folder: Path) -> NoReturn:
    from perilune.bench import index

    add = index._add

    def half(*args: Any) -> None:
        add(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    index._add = half
    Store(folder).append(entry("killed", speed=5.0), [])
    raise AssertionError("it lived")


def test_without_room_for_the_index_runs_are_still_kept_and_read(tmp_path: Path) -> None:
    """A limit on the size of files is a disk that is full for the larger of them."""
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert _in_child(lambda: _limited(tmp_path, 8192)) == 0
    assert ("late", 0) in Store(tmp_path).done()


def test_without_room_for_the_log_it_says_so_and_what_was_there_stays(tmp_path: Path) -> None:
    filled(tmp_path)
    assert _in_child(lambda: _limited(tmp_path, (tmp_path / "runs.jsonl").stat().st_size + 20)) == 3
    check(Store(tmp_path))
    store = Store(tmp_path)
    store.append(entry("next"), [])
    assert ("next", 0) in store.done()
    assert ("late", 0) not in store.done()


def _limited(folder: Path, size: int) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    store = Store(folder)
    try:
        store.append(entry("late"), [])
    except ConfigError as error:
        return 3 if "Runs written so far are safe" in str(error) else 4
    return 0 if ("late", 0) in store.done() else 5


def test_a_folder_that_cannot_be_written_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled(folder)
        for path in (folder / "index.sqlite", *folder.glob("index.sqlite-*")):
            path.unlink()
        folder.chmod(0o555)
        try:
            assert _in_child(lambda: _as_nobody(folder)) == 0
        finally:
            folder.chmod(0o755)
        assert not (folder / "index.sqlite").exists()


def _as_nobody(folder: Path) -> int:
    if os.getuid() == 0:
        os.setuid(65534)  # root writes anywhere
    check(Store(folder))
    try:
        Store(folder).append(entry("x"), [])
    except ConfigError:
        return 0
    return 1


def test_several_sweeps_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    children = [FORK.Process(target=_writes, args=(tmp_path, name)) for name in "abcd"]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert Store(tmp_path).done() == {(name, repeat) for name in "abcd" for repeat in range(8)}
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (32,)


def _writes(folder: Path, name: str) -> None:
    store = Store(folder)
    for repeat in range(8):
        store.append(entry(name, repeat), [])
        assert (name, repeat) in store.done()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.booleans()), max_size=12), st.data())
def test_followed_step_by_step_it_is_what_it_is_made_at_once(
    runs: list[tuple[str, int, bool]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        log, looked = Path(name, "runs.jsonl"), 0
        with log.open("a") as file:
            for number, (print_, repeat, good) in enumerate(runs):
                more = {} if good else {"verdict": FAILED}
                file.write(json.dumps(entry(print_, repeat, float(number), **more)) + "\n")
                file.flush()
                if data.draw(st.booleans()):
                    looked = len(Store(Path(name)).entries())
        stepwise = Store(Path(name)).entries()
        Path(name, "index.sqlite").unlink(missing_ok=True)
        assert Store(Path(name)).entries() == stepwise
        last = {(p, r): float(i) for i, (p, r, _) in enumerate(runs)}
        assert {(e["fingerprint"], e["repeat"]): e["metrics"]["output_per_s"] for e in stepwise} == last
        assert looked <= len(last)


def _in_child(do: Callable[[], int]) -> int:
    """The status of a forked process: limits and rights that are given up cannot be taken back."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(do())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
