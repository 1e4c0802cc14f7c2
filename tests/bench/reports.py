"""Results as a store would hold them, for tests of what is made of them: two engines over a ladder of concurrency."""

from __future__ import annotations

import math
from typing import Any


def entries(repeats: int = 3) -> list[dict[str, Any]]:
    """A server that saturates at about 900 tokens/s, with and without a flag; the last point degraded."""
    return [
        entry(conc, flag, repeat) for repeat in range(repeats) for flag in (None, True) for conc in (1, 2, 4, 8, 16)
    ]


def entry(conc: int, flag: bool | None, repeat: int) -> dict[str, Any]:
    noise = 1 + 0.02 * math.sin(7 * repeat + conc + bool(flag))
    speed = 900 * (1 - math.exp(-conc / 5)) * (0.8 if flag else 1.0) * noise
    tpot, ttft = conc / speed, 0.02 * conc * (1.5 if flag else 1.0) * noise
    whole = ttft + 32 * tpot
    degraded = conc == 16 and flag
    metrics = {"output_per_s": speed, "interactivity": 1 / tpot, "hit_rate": 0.0 if flag else 0.6, "duration": 10.0}
    for name, value in (("ttft", ttft), ("ttft_response", ttft), ("tpot", tpot), ("e2e_response", whole)):
        metrics |= {f"{name}_p50": value, f"{name}_p99": 1.6 * value}
    share = 0.9 if flag else 0.95
    right = {
        "kind": "arithmetic", "set": "s", "asked": 20, "unanswered": 0, "right": round(20 * share), "share": share,
        "low": share - 0.12, "high": share + 0.04, "outcomes": [True] * 20, "floor": 0.5, "passed": True,
    }  # fmt: skip
    return {
        "fingerprint": f"{conc:02d}{int(bool(flag))}abcdef0123456"[:16], "asked": f"a{conc}", "sweep": "load",
        "names": {"conc": conc} | ({"argv.no-prefix-cache": True} if flag else {}), "labels": {}, "repeat": repeat,
        "verdict": {"status": "degraded" if degraded else "valid",
                    "reasons": ["no steady state: times per token drift over the run (p = 0.002)"] if degraded else [],
                    "notes": ["p99 from 96 requests; 1000 are wanted"]},
        "metrics": metrics, "gpus": 0, "model": "builtin",
        "server": {"engine": "perilune", "model": "builtin", "image": None, "argv": ["perilune", "serve", "builtin"],
                   "env": {}, "hardware": "local", "topology": dict.fromkeys(("tp", "pp", "ep"), 1)},
        "rules": [], "workload": {"kind": "random", "input": 128, "output": 32},
        "load": {"kind": "closed", "conc": conc},
        "slo": {}, "evals": [right] if repeat == 0 else [], "started": 0.0, "seconds": 12.0,
        "bench": {"version": "0", "python": "3", "host": "test"}, "ideal_hit_rate": 0.6, "window": None, "client": {},
        "timeline": [{"at": float(t), "cache_used": min(1.0, conc / 16) * (t > 0), "memory": (2 + conc / 8) * 2**30,
                      "cache_kept": 0.0 if flag else min(0.8, t * conc / 100)} for t in range(11)],
    }  # fmt: skip
