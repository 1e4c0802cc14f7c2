"""Results on disk: a log of runs that is only ever appended to, and one compressed log of requests per run.

    runs.jsonl                       one line per finished run, flushed to the disk before the next begins
    records/<fingerprint>-<n>.jsonl.gz   every request of that run; written first, under another name, then renamed
    index.sqlite                     where in runs.jsonl each run is, its state and numbers; made from it (index.py)
    logs/                            what servers printed

A crash loses at most the run in progress; a torn last line is passed over and cut off at the next append.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import msgspec

from perilune.bench.index import Index
from perilune.bench.load.record import Record, from_line, to_line
from perilune.errors import ConfigError

Entry = dict[str, Any]
_SECRET = re.compile(r"(?i)(key|token|secret|password|credential)")
_NOT_SECRET = re.compile(r"(?i)tokens|max-|tokenizer")


class Store:
    """A folder of results. Several processes may append to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = folder / "runs.jsonl"
        self._index = Index(self._log)

    def entries(self) -> list[Entry]:
        """Every finished run, the latest of each (fingerprint, repeat) only, in order of first appearance."""
        places = self._index.ask("SELECT offset, length FROM runs ORDER BY id")
        if not places:
            return []
        with self._log.open("rb") as log:
            return [json.loads(os.pread(log.fileno(), length, offset)) for offset, length in places]

    def done(self) -> set[tuple[str, int]]:
        """What needs no other run: a failed one does."""
        found = self._index.ask("SELECT fingerprint, repeat FROM runs WHERE status != 'failed'")
        return {(str(fingerprint), int(repeat)) for fingerprint, repeat in found}

    def seconds(self) -> dict[str, float]:
        """How long one run of each point took, the median of its repeats; failed ones say nothing."""
        found = self._index.ask(
            "SELECT fingerprint, seconds FROM runs WHERE status != 'failed' AND seconds IS NOT NULL"
        )
        took: dict[str, list[float]] = {}
        for fingerprint, seconds in found:
            took.setdefault(str(fingerprint), []).append(float(seconds))
        return {fingerprint: median(each) for fingerprint, each in took.items()}

    def listed(self, metric: str, status: str | None = None) -> list[dict[str, Any]]:
        """One row per run: what it is, its state, and one number; None where it has none."""
        found = self._index.ask(
            "SELECT fingerprint, repeat, sweep, names, status, value FROM runs JOIN points USING (fingerprint) "
            "LEFT JOIN metrics ON run = id AND name = ? WHERE ? IS NULL OR status = ? ORDER BY id",
            (metric, status, status),
        )
        keys = ("fingerprint", "repeat", "sweep", "names", "status", metric)
        return [{**dict(zip(keys, row, strict=True)), "names": json.loads(row[3])} for row in found]

    def append(self, entry: Entry, records: Sequence[Record]) -> None:
        """Writes a run so that it is there whole or not at all. Raises ConfigError for a full or read-only disk."""
        name = f"{entry['fingerprint']}-{entry['repeat']}.jsonl.gz"
        try:
            (self.folder / "records").mkdir(parents=True, exist_ok=True)
            path = self.folder / "records" / name
            temporary = path.with_suffix(".part")
            with temporary.open("wb") as raw:
                with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as file:
                    file.writelines(to_line(record) for record in records)
                _flush(raw.fileno())
            temporary.replace(path)
            with self._log.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
                file.truncate(_whole(file))
                file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
                file.flush()
                _flush(file.fileno())
            for folder in (path.parent, self.folder):
                _flush_folder(folder)
        except OSError as error:
            raise ConfigError(
                f"Cannot write results to {self.folder}.", f"{error}.", "Runs written so far are safe; resume later."
            ) from error
        self._index.follow()

    def records(self, entry: Entry) -> list[Record]:
        """The requests of a run. Raises ConfigError if its log is gone."""
        path = self.folder / "records" / f"{entry['fingerprint']}-{entry['repeat']}.jsonl.gz"
        try:
            with gzip.open(path, "rb") as file:
                return [from_line(line) for line in file]
        except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
            raise ConfigError(f"Cannot read {path}.", f"{error}.") from error


def without_secrets(identity: dict[str, Any]) -> dict[str, Any]:
    """A server's identity as it may be stored: values of flags and variables that name a key or token are left out."""
    if "parts" in identity:
        identity = {**identity, "parts": [without_secrets(part) for part in identity["parts"]]}
    words, hidden, hide = list(identity["argv"]), [], False
    for word in words:
        flag, sign, _ = word.partition("=")
        secret = flag.startswith("-") and _is_secret(flag)
        hidden.append("***" if hide else f"{flag}=***" if secret and sign else word)
        hide = secret and not sign
    env = {key: "***" if _is_secret(key) else value for key, value in identity["env"].items()}
    return {**identity, "argv": hidden, "env": env}


def _is_secret(name: str) -> bool:
    return bool(_SECRET.search(name)) and not _NOT_SECRET.search(name)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    """So that a new name in it outlives a crash too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _whole(log: BinaryIO) -> int:
    """Bytes of whole lines: one without an end was torn by a crash."""
    end = log.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        log.seek(begin)
        if (found := log.read(end - begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


def by_point(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Runs that count, by fingerprint: failed ones are left out."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["verdict"]["status"] != "failed":
            found.setdefault(entry["fingerprint"], []).append(entry)
    return found
