"""Every number, its unit and its exact definition, once.

The same word means different things in different tools; `aliases` say what others call ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from perilune.bench.load.record import Record
from perilune.bench.spec.sweep import Slo

QUANTILES = (50, 90, 95, 99)
ENOUGH_FOR_P99 = 1000


@dataclass(frozen=True)
class PerRequest:
    """A number each request has, or has not. Seconds."""

    name: str
    definition: str
    of: Callable[[Record], float | None]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class PerRun:
    """A number of a whole run. `better` says which direction is."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    definition: str
    aliases: tuple[str, ...] = ()


def tokens_out(record: Record) -> int | None:
    """The server's count; without one, absent: chunks are not tokens."""
    return record.output_tokens


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def in_one_piece(record: Record) -> bool:
    """Whether all of an answer was read at one moment: something on the way held it, and no time per token was seen."""
    return len(record.arrivals) > 1 and record.arrivals[0] == record.arrivals[-1]


def _tpot(record: Record) -> float | None:
    count = tokens_out(record)
    if count is None or count < 2 or record.first_token is None or not record.arrivals or in_one_piece(record):
        return None
    return (record.arrivals[-1] - record.first_token) / (count - 1)


def _normalised(record: Record) -> float | None:
    count, whole = tokens_out(record), _since(record.intended, record.end)
    return None if not count or whole is None else whole / count


PER_REQUEST = (
    PerRequest("ttft", "from the first byte sent to the first token of any kind, reasoning included",
               lambda r: _since(r.sent, r.first_token), ("TTFT (aiperf, vLLM)",)),
    PerRequest("ttft_response", "from the intended start to the first token: ttft and all waiting in the client",
               lambda r: _since(r.intended, r.first_token)),
    PerRequest("ttfo", "from the first byte sent to the first token of the answer, reasoning passed over",
               lambda r: _since(r.sent, r.first_answer), ("TTFO (aiperf)",)),
    PerRequest("ttfb", "from the first byte sent to the first byte of the answer's body",
               lambda r: _since(r.sent, r.first_byte)),
    PerRequest("tpot", "(last token - first token) / (output tokens - 1); absent for one token or one piece",
               _tpot, ("TPOT (vLLM, InferenceX)", "ITL (aiperf)")),
    PerRequest("e2e", "from the first byte sent to the end: service time",
               lambda r: _since(r.sent, r.end), ("E2EL",)),
    PerRequest("e2e_response", "from the intended start to the end: response time",
               lambda r: _since(r.intended, r.end)),
    PerRequest("wait", "from the intended start to the first byte sent: the client's own delay",
               lambda r: _since(r.intended, r.sent), ("schedule delay (inference-perf)",)),
    PerRequest("normalised", "response time / output tokens", _normalised, ("NTPOT (inference-perf)",)),
)  # fmt: skip

PER_RUN = (
    PerRun("output_per_s", "tokens/s", "higher", "output tokens of requests that succeeded / duration"),
    PerRun("input_per_s", "tokens/s", "higher", "prompt tokens of requests that succeeded / duration"),
    PerRun("total_per_s", "tokens/s", "higher", "prompt and output tokens / duration"),
    PerRun("output_per_s_gpu", "tokens/s/GPU", "higher", "output_per_s / GPUs held, tp·pp·dp·pcp"),
    PerRun("total_per_s_gpu", "tokens/s/GPU", "higher", "total_per_s / GPUs held", ("tput_per_gpu (InferenceX)",)),
    PerRun(
        "input_per_s_prefill_gpu",
        "tokens/s/GPU",
        "higher",
        "input_per_s / GPUs of prefill engines; split servers",
        ("input_tput_per_gpu (InferenceX)",),
    ),
    PerRun(
        "output_per_s_decode_gpu",
        "tokens/s/GPU",
        "higher",
        "output_per_s / GPUs of decode engines; split servers",
        ("output_tput_per_gpu (InferenceX)",),
    ),
    PerRun("handed_over", "share", "higher", "requests whose prompt a prefill engine read / requests, by the router"),
    PerRun("requests_per_s", "1/s", "higher", "requests that succeeded / duration"),
    PerRun("goodput", "1/s", "higher", "requests that kept every limit of the SLO / duration"),
    PerRun("good", "share", "higher", "requests that kept every limit of the SLO / all"),
    PerRun("interactivity", "tokens/s/user", "higher", "1 / median tpot", ("intvty (InferenceX)",)),
    PerRun("failed", "share", "lower", "requests that failed / all"),
    PerRun(
        "queue",
        "s",
        "lower",
        "mean time requests waited in the server's queue, from its counters",
        ("request_queue_time (vLLM)",),
    ),
    PerRun(
        "joules",
        "J",
        "lower",
        "energy of this host's processors (RAPL) and GPUs (hwmon) during the load, idle "
        "included; only for servers started here",
    ),
    PerRun("joules_per_token", "J/token", "lower", "joules / output tokens"),
    PerRun("hit_rate", "share", "higher", "prompt tokens the server had cached / prompt tokens, from usage"),
)

BETTER: dict[str, str] = {metric.name: str(metric.better) for metric in PER_RUN} | {
    f"{metric.name}_{suffix}": "lower"
    for metric in PER_REQUEST
    for suffix in ("mean", *(f"p{q}" for q in QUANTILES))
} | {f"itl_{suffix}": "lower" for suffix in ("mean", *(f"p{q}" for q in QUANTILES))}  # fmt: skip
"""Which direction is better, for every name `summary` can give."""


def good(record: Record, slo: Slo) -> bool:
    """Whether a request succeeded within every limit. Limits hold for response times: a user waits from the start.

    One token has no tpot, nor has an answer in one piece, and both keep its limit; an answer whose tokens nobody
    counted cannot show that it did.
    """
    if not record.ok:
        return False
    by_name = {metric.name: metric.of(record) for metric in PER_REQUEST}
    for limit, name in ((slo.ttft_ms, "ttft_response"), (slo.e2e_ms, "e2e_response")):
        if limit is not None and ((value := by_name[name]) is None or value * 1000 > limit):
            return False
    if slo.tpot_ms is not None and tokens_out(record) != 1 and not in_one_piece(record):
        value = by_name["tpot"]
        return value is not None and value * 1000 <= slo.tpot_ms
    return True


def summary(records: Sequence[Record], slo: Slo, devices: int = 1, gpus: bool = True) -> dict[str, float]:
    """Every metric that exists for these records, by name; times in seconds. What is absent has no key."""
    done = [record for record in records if record.ok]
    found: dict[str, float] = {}
    if records:
        found["failed"] = 1 - len(done) / len(records)
    for metric in PER_REQUEST:
        values = [value for record in done if (value := metric.of(record)) is not None]
        found |= _distribution(metric.name, values)
    found |= _distribution("itl", [b - a for record in done for a, b in pairwise(record.arrivals)])
    if done:
        start = min(record.intended for record in records)
        duration = max(record.end or 0.0 for record in done) - start
        found |= _rates(done, duration, devices, gpus)
        found["duration"] = duration
        if any(limit is not None for limit in (slo.ttft_ms, slo.tpot_ms, slo.e2e_ms)):
            kept = len([record for record in records if good(record, slo)])
            found |= {"goodput": kept / duration, "good": kept / len(records)}
    if found.get("tpot_p50"):
        found["interactivity"] = 1 / found["tpot_p50"]
    return found


def _distribution(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    array = np.asarray(values)
    return {f"{name}_mean": float(array.mean())} | {
        f"{name}_p{q}": float(np.quantile(array, q / 100)) for q in QUANTILES
    }


def _rates(done: Sequence[Record], duration: float, devices: int, gpus: bool) -> dict[str, float]:
    found = {"requests_per_s": len(done) / duration}
    inputs = [record.input_tokens for record in done if record.input_tokens is not None]
    outputs = [count for record in done if (count := tokens_out(record)) is not None]
    if len(outputs) == len(done):
        found["output_per_s"] = sum(outputs) / duration
    if len(inputs) == len(done):
        found["input_per_s"] = sum(inputs) / duration
        cached = [count for record in done if (count := record.cached_tokens) is not None]
        if len(cached) == len(done) and sum(inputs) > 0:
            found["hit_rate"] = sum(cached) / sum(inputs)
    if "output_per_s" in found and "input_per_s" in found:
        found["total_per_s"] = found["output_per_s"] + found["input_per_s"]
    if gpus:
        found |= {f"{name}_gpu": found[name] / devices for name in ("output_per_s", "total_per_s") if name in found}
    return found
