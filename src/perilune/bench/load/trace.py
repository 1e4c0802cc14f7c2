"""Recorded loads: Mooncake's JSON lines, Azure's CSV, and the log of our own runs."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from perilune.bench.spec.workload import Trace
from perilune.errors import ConfigError

MOONCAKE_BLOCK = 512
"""Tokens one hash of a Mooncake trace stands for."""


class Row(msgspec.Struct, frozen=True):
    """One request of a trace. `hashes` name its blocks of 512 tokens: equal hashes, equal tokens."""

    at: float
    input_tokens: int
    output_tokens: int
    hashes: tuple[int, ...] = ()


def read_trace(trace: Trace) -> list[Row]:
    """Rows by time, the first at 0, scaled and limited as `trace` says. Raises ConfigError with file and line."""
    path = Path(trace.path)
    rows = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8") as file:
            for line, fields in enumerate(_rows(trace.format, file), 1):
                try:
                    row = _row(trace.format, fields)
                except (KeyError, ValueError, TypeError) as error:
                    raise ConfigError(f"{path}: row {line} is no {trace.format} row.", f"{error!r}.") from error
                if row is not None:
                    rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the trace {path}.", f"{error}.") from error
    rows = [row for row in rows if trace.max_input is None or row.input_tokens <= trace.max_input]
    rows.sort(key=lambda row: row.at)
    if not rows:
        raise ConfigError(f"{path} has no request to replay.")
    first = rows[0].at
    scaled = (msgspec.structs.replace(row, at=(row.at - first) * trace.time_scale) for row in rows)
    return list(scaled)[: trace.limit]


def _rows(kind: str, file: Iterator[str]) -> Iterator[dict[str, object]]:
    if kind == "azure":
        yield from csv.DictReader(file)
        return
    for line in file:
        if line.strip():
            yield json.loads(line)


def _row(kind: str, fields: dict[str, object]) -> Row | None:
    if kind == "mooncake":
        hashes = fields.get("hash_ids") or ()
        assert isinstance(hashes, list | tuple)
        return _checked(
            float(str(fields["timestamp"])) / 1000,
            fields["input_length"],
            fields["output_length"],
            tuple(map(int, hashes)),
        )
    if kind == "azure":
        return _checked(_seconds(str(fields["TIMESTAMP"])), fields["ContextTokens"], fields["GeneratedTokens"])
    if fields.get("error") is not None or "input_tokens" not in fields:
        return None
    return _checked(float(str(fields["intended"])), fields["input_tokens"], fields["output_tokens"])


def _checked(at: float, asked: object, answered: object, hashes: tuple[int, ...] = ()) -> Row | None:
    """None for a request without a prompt or an answer, as Azure's have some."""
    row = Row(at, int(str(asked)), int(str(answered)), hashes)
    return row if row.input_tokens > 0 and row.output_tokens > 0 else None


def _seconds(text: str) -> float:
    """Azure's `2023-11-16 18:15:46.6805900`: seven digits, and one of them has to go."""
    head, _, fraction = text.partition(".")
    digits = "".join(c for c in fraction.partition("+")[0] if c.isdigit())
    return datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{digits or 0}")
