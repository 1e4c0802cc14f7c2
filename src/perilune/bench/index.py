"""An index of the log of runs, in SQLite: what is there, in which state, with which numbers, and where in the log.

The log is the truth and this is made from it: bytes are followed from where the last look ended, a run a row, in one
transaction. Missing, damaged, of another schema, or of another log: it is made anew. Where it cannot be written, it is
made in memory for the one question. So every reader goes the same way, and none can see what the log does not say.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perilune.errors import ConfigError

_VERSION = 1
_SCHEMA = """
CREATE TABLE seen (bytes INTEGER NOT NULL, last TEXT NOT NULL);
INSERT INTO seen VALUES (0, '');
CREATE TABLE points (fingerprint TEXT PRIMARY KEY, asked TEXT NOT NULL, sweep TEXT NOT NULL, names TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL REFERENCES points, repeat INTEGER NOT NULL,
    status TEXT NOT NULL, started REAL, seconds REAL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    UNIQUE (fingerprint, repeat)
);
CREATE TABLE metrics (
    run INTEGER NOT NULL REFERENCES runs, name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (run, name)
) WITHOUT ROWID;
"""


class Index:
    """The index of `log`, beside it as `index.sqlite`, readable by its owner alone."""

    def __init__(self, log: Path) -> None:
        self._log, self.path = log, log.with_name("index.sqlite")

    def ask(self, question: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query over tables that say what the log says now. Raises ConfigError for a log that is none."""
        if self._log.exists():
            with self._log.open("rb") as log:  # locked, so that no file is taken from under an open connection
                for lock, opened in ((fcntl.LOCK_SH, self._connected), (fcntl.LOCK_EX, self._renewed)):
                    with contextlib.suppress(sqlite3.Error, OSError):
                        fcntl.flock(log, lock)
                        with contextlib.closing(opened()) as db:
                            return db.execute(question, values).fetchall()
        with contextlib.closing(_made(":memory:")) as db:
            return self._followed(db).execute(question, values).fetchall()

    def follow(self) -> None:
        """Takes in what was appended. Never fails: what cannot be written now is taken in by whoever looks next."""
        with contextlib.suppress(OSError, sqlite3.Error, ConfigError):
            self.ask("SELECT 1")

    def _connected(self) -> sqlite3.Connection:
        """Raises sqlite3.Error for a file that is no index of this schema and log, OSError for a folder of others."""
        found = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=30, isolation_level=None)
        try:
            found.execute("PRAGMA synchronous = NORMAL")  # the log is flushed; this can be made again
            (version,) = found.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise sqlite3.DatabaseError("another schema")
            return self._followed(found)
        except BaseException:
            found.close()
            raise

    def _renewed(self) -> sqlite3.Connection:
        """A whole new file in the place of the old one."""
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _made(self.path).close()
        return self._connected()

    def _followed(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Raises sqlite3.DatabaseError if the log is not the one that was followed before."""
        size = self._log.stat().st_size if self._log.exists() else 0
        seen, last = db.execute("SELECT bytes, last FROM seen").fetchone()
        if seen == size and not size:
            return db
        with self._log.open("rb") as log:
            if seen > size or last != _last(log.fileno(), seen):
                raise sqlite3.DatabaseError("another log")
            if seen == size:
                return db
            db.execute("BEGIN IMMEDIATE")
            try:
                (seen,) = db.execute("SELECT bytes FROM seen").fetchone()  # another process may have been here
                log.seek(seen)
                for line in log:
                    if not line.endswith(b"\n"):
                        break  # torn by a crash, or being written
                    try:
                        _add(db, json.loads(line), seen, len(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise ConfigError(
                            f"{self._log}: what begins at byte {seen} is no run.", f"{error!r}.", "Take that line out."
                        ) from error
                    seen += len(line)
                db.execute("UPDATE seen SET bytes = ?, last = ?", (seen, _last(log.fileno(), seen)))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return db


def _made(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    return db


def _add(db: sqlite3.Connection, entry: dict[str, Any], offset: int, length: int) -> None:
    """A run in place of an earlier one of the same point and repeat, which keeps its rank."""
    verdict, metrics = entry["verdict"], entry["metrics"]
    key = (entry["fingerprint"], entry["repeat"])
    db.execute(
        "INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?)",
        (entry["fingerprint"], entry["asked"], entry["sweep"], json.dumps(entry["names"])),
    )
    values = (verdict["status"], entry.get("started"), entry.get("seconds"), offset, length)
    db.execute(
        "INSERT INTO runs (fingerprint, repeat, status, started, seconds, offset, length) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (fingerprint, repeat) DO UPDATE SET status = excluded.status, started = excluded.started, "
        "seconds = excluded.seconds, offset = excluded.offset, length = excluded.length",
        (*key, *values),
    )
    (run,) = db.execute("SELECT id FROM runs WHERE fingerprint = ? AND repeat = ?", key).fetchone()
    db.execute("DELETE FROM metrics WHERE run = ?", (run,))
    db.executemany("INSERT INTO metrics VALUES (?, ?, ?)", [(run, name, value) for name, value in metrics.items()])


def _last(log: int, end: int) -> str:
    """What the log has before `end`, as far as tells one log from another."""
    begin = max(0, end - 4096)
    return hashlib.sha256(os.pread(log, end - begin, begin)).hexdigest() if end else ""
