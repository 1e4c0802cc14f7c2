"""A workload made concrete: every prompt, answer length and intended time of one run, from one seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perilune.bench.load.record import Ask
from perilune.bench.load.schedule import times
from perilune.bench.load.trace import MOONCAKE_BLOCK, Row, read_trace
from perilune.bench.spec.lengths import draw
from perilune.bench.spec.workload import Closed, Load, Random, Sessions, Trace, Workload
from perilune.errors import ConfigError

_WORDS = (  # noqa: SIM905 - a hundred quoted words would hide what they are
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea body back parent face level office door"
).split()


@dataclass(frozen=True)
class Run:
    """`asks` in the order of their times. `warm` are shared beginnings to send before the clock starts.

    `ideal_hit_rate` is the share of prompt tokens that a cache without limits, filled in this order, would have.
    """

    asks: tuple[Ask, ...]
    warm: tuple[Ask, ...]
    ideal_hit_rate: float


def generator(*parts: object) -> np.random.Generator:
    """A generator seeded by everything in `parts`."""
    text = "\0".join(map(str, parts)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))


def words(ids: Sequence[int]) -> str:
    """Ids as words: equal ids, equal words."""
    return " ".join(_WORDS[i % len(_WORDS)] for i in ids)


def build(workload: Workload, load: Load, key: str, words_per_token: float = 1.0) -> Run:
    """`key` names point and repeat: other keys, other tokens, so that one run cannot warm another's cache.

    Raises ConfigError where workload and load do not go together.
    """
    if (load.kind == "replay") != isinstance(workload, Trace):
        raise ConfigError(
            f"A {workload.kind} workload cannot have a {load.kind} load.", "replay and trace need each other."
        )
    rng = generator(workload.seed, key)
    tokens = _Tokens(workload, rng, words_per_token)
    if isinstance(workload, Trace):
        return _replayed(read_trace(workload), tokens, key, workload)
    at = times(load, generator(workload.seed, "schedule"))
    count = len(at) if at is not None else _closed(load)
    lengths = generator(workload.seed, "lengths")
    if isinstance(workload, Sessions):
        return _sessions(workload, at, count, lengths, tokens)
    return _random(workload, at, count, lengths, tokens)


def warmups(workload: Workload, count: int, key: str, words_per_token: float = 1.0) -> tuple[Ask, ...]:
    """Requests before the clock starts: shapes as the run's own, none like another, none like the run's."""
    plain = (
        workload
        if isinstance(workload, Random)
        else Random(input=256, output=16, endpoint=workload.endpoint, vocabulary=workload.vocabulary)
    )
    plain = plain.model_copy(update={"prefix": None})
    return build(plain, Closed(kind="closed", requests=max(1, count)), f"{key} warm-up", words_per_token).asks[:count]


def _closed(load: Load) -> int:
    assert isinstance(load, Closed)
    return load.conc * load.waves if load.requests is None else load.requests


class _Tokens:
    """Draws token ids, and turns them into what the endpoint takes."""

    def __init__(self, workload: Workload, rng: np.random.Generator, words_per_token: float) -> None:
        self._low, self._high = workload.vocabulary
        self._rng, self._chat, self._ratio = rng, workload.endpoint == "chat", words_per_token

    def ids(self, count: int) -> list[int]:
        return [int(i) for i in self._rng.integers(self._low, self._high, count)]

    def block(self, name: object, count: int) -> list[int]:
        """The same tokens for the same name."""
        return [int(i) for i in generator(name).integers(self._low, self._high, count)]

    def prompt(self, ids: list[int]) -> list[int] | str:
        return words(ids[: max(1, round(len(ids) * self._ratio))]) if self._chat else ids


def _random(workload: Random, at: list[float] | None, count: int, lengths: np.random.Generator, tokens: _Tokens) -> Run:
    inputs, outputs = draw(workload.input, lengths, count), draw(workload.output, lengths, count)
    prefixes: list[list[int]] = []
    groups = np.zeros(count, dtype=int)
    if workload.prefix is not None:
        prefixes = [tokens.ids(n) for n in draw(workload.prefix.length, lengths, workload.prefix.groups)]
        weights = zipf(workload.prefix.groups, workload.prefix.zipf)
        groups = lengths.choice(workload.prefix.groups, count, p=weights)
    asks, seen, hits, total = [], set[int](), 0, 0
    for i in range(count):
        head = prefixes[groups[i]][: inputs[i] - 1] if prefixes else []
        ids = head + tokens.ids(inputs[i] - len(head))
        if workload.cache == "warm" or int(groups[i]) in seen:
            hits += len(head)
        seen.add(int(groups[i]))
        total += len(ids)
        asks.append(Ask(i, tokens.prompt(ids), outputs[i], None if at is None else at[i], prefix_tokens=len(head)))
    warm = [Ask(-1 - k, tokens.prompt([*head, *tokens.ids(1)]), 1) for k, head in enumerate(prefixes)]
    return Run(tuple(asks), tuple(warm) if workload.cache == "warm" else (), hits / max(1, total))


def zipf(groups: int, exponent: float) -> list[float]:
    """Shares in proportion to 1 / k^exponent, k from 1."""
    weights = [1 / k**exponent for k in range(1, groups + 1)]
    return [w / sum(weights) for w in weights]


def _sessions(
    workload: Sessions, at: list[float] | None, count: int, lengths: np.random.Generator, tokens: _Tokens
) -> Run:
    asks: list[Ask] = []
    hits, total = 0, 0
    system = tokens.ids(draw(workload.system, lengths, 1)[0])
    for session, turns in enumerate(draw(workload.turns, lengths, count)):
        adds, answers = draw(workload.input, lengths, turns), draw(workload.output, lengths, turns)
        context = 0
        for turn in range(turns):
            head = system if turn == 0 else []
            before = context if turn else (len(system) if session or workload.cache == "warm" else 0)
            hits += before
            context += len(head) + adds[turn]
            total += context
            asks.append(
                Ask(
                    len(asks), tokens.prompt(head + tokens.ids(adds[turn])), answers[turn],
                    at[session] if at is not None and turn == 0 else None,
                    session, workload.think_s if turn else 0.0, before,
                )
            )  # fmt: skip
            context += answers[turn]
    warm = (Ask(-1, tokens.prompt([*system, *tokens.ids(1)]), 1),) if workload.cache == "warm" else ()
    return Run(tuple(asks), warm, hits / max(1, total))


def _replayed(rows: Sequence[Row], tokens: _Tokens, key: str, workload: Trace) -> Run:
    asks, seen, hits, total = [], set[tuple[int, ...]](), 0, 0
    for i, row in enumerate(rows):
        ids: list[int] = []
        for k, name in enumerate(row.hashes):
            room = row.input_tokens - len(ids)
            ids += tokens.block((workload.seed, key, name), min(MOONCAKE_BLOCK, room))
            if row.hashes[: k + 1] in seen:
                hits += min(MOONCAKE_BLOCK, room)
            seen.add(row.hashes[: k + 1])
        ids += tokens.ids(max(0, row.input_tokens - len(ids)))
        total += len(ids)
        asks.append(Ask(i, tokens.prompt(ids), row.output_tokens, row.at))
    return Run(tuple(asks), (), hits / max(1, total))
