"""Results for others: InferenceX's aggregate JSON, and CSV with every metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from perilune.bench.store import Entry

_LATENCIES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}


def inferencex(entry: Entry) -> dict[str, Any]:
    """One run in the fields of their aggregate: seconds, tokens per second per GPU, input and output together.

    `intvty` is 1 / tpot where that is one user's speed: for mean, median and percentiles, never for a deviation.
    What was not measured is left out. Their p99.9 and deviations are not kept here.
    """
    labels, names, metrics = entry["labels"], entry["names"], entry["metrics"]
    topology = entry["server"]["topology"]
    found: dict[str, Any] = {
        "hw": entry["server"]["hardware"], "framework": labels.get("framework", entry["server"]["engine"]),
        "image": entry["server"]["image"], "model": entry["server"]["model"],
        "infmax_model_prefix": labels.get("model_prefix"),
        "precision": labels.get("precision"), "isl": labels.get("isl"), "osl": labels.get("osl"),
        "conc": entry["load"].get("conc"), "tp": topology["tp"], "pp": topology["pp"], "ep": topology["ep"],
        "dp_attention": bool(names.get("dp_attn", labels.get("dp_attn", False))),
        "spec_decoding": names.get("spec", labels.get("spec", "none")), "is_multinode": False,
        "disagg": "parts" in entry["server"],
    }  # fmt: skip
    if (devices := max(1, entry["gpus"])) and "output_per_s" in metrics:
        found["output_tput_per_gpu"] = metrics["output_per_s"] / devices
    for ours, theirs in (("total_per_s", "tput_per_gpu"), ("input_per_s", "input_tput_per_gpu")):
        if ours in metrics:
            found[theirs] = metrics[ours] / devices
    for word, role in (("input", "prefill"), ("output", "decode")):  # split servers: each by the GPUs that do it
        if (value := metrics.get(f"{word}_per_s_{role}_gpu")) is not None:
            found[f"{word}_tput_per_gpu"] = value
    for theirs, ours in _LATENCIES.items():
        for suffix, quantile in (("mean", "mean"), ("median", "p50"), ("p90", "p90"), ("p99", "p99")):
            value = metrics.get(f"{ours}_{quantile}")
            if value is not None:
                found[f"{suffix}_{theirs}"] = value
                if theirs == "tpot" and value > 0:
                    found[f"{suffix}_intvty"] = 1 / value
    return {key: value for key, value in found.items() if value is not None}


def table(entries: Sequence[Entry]) -> str:
    """CSV: one line per run, a column per axis and per metric; empty where there is no value."""
    axes = list(dict.fromkeys(name for entry in entries for name in entry["names"]))
    metrics = sorted({name for entry in entries for name in entry["metrics"]})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["fingerprint", "sweep", "repeat", "verdict", "gpus", *axes, *metrics, "reasons"])
    for entry in entries:
        verdict = entry["verdict"]
        writer.writerow(
            [entry["fingerprint"], entry["sweep"], entry["repeat"], verdict["status"], entry["gpus"],
             *(entry["names"].get(axis, "") for axis in axes), *(entry["metrics"].get(m, "") for m in metrics),
             "; ".join(verdict["reasons"])]
        )  # fmt: skip
    return out.getvalue()
