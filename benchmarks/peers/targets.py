"""What perilune should reach beside llama.cpp: rows and ratios as agreed before the kernels were written."""

from __future__ import annotations

PEAK_MEMORY = "peak memory"
LOAD_TIME = "load time"

_BOTH = {
    "prefill 512 after 4,096": 2.3,
    "prefill 512 after 32,768": 3.0,
    "decode": 1.15,
    "decode after 4,096": 1.3,
    "decode after 32,768": 1.5,
    "decode, 8 sequences": 1.8,
    "decode, 16 sequences": 2.0,
    PEAK_MEMORY: 1.0,
}
TARGETS: dict[str, dict[str, float]] = {
    "kimi": _BOTH | {"prefill 512": 2.3, "prefill 2,048": 2.8},
    "glm": _BOTH | {"prefill 512": 2.8, "prefill 2,048": 2.6},
}
