"""How much of the roofline engines were seen to reach, by device and kind of model. Imports no torch.

Each range was computed from rates people published, or measured here, over the bytes and operations such a model needs.
Where nobody published one there is none: the bound alone is printed then.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.models.spec import ModelSpec


@dataclass(frozen=True)
class Efficiency:
    """`decode` of the bandwidth bound and `prefill` of the compute bound, from the least seen to the most."""

    decode: tuple[float, float]
    decode_because: str
    prefill: tuple[float, float] | None = None
    prefill_because: str = ""


_STRIX_PREFILL = (
    (0.08, 0.21),
    "GLM-4.7-Flash in llama.cpp, empty context: 422 tok/s in BF16 under ROCm, 1,092 in Q8 under Vulkan (kyuz0's tests)",
)
_KNOWN = {
    ("strix-halo", True): Efficiency(
        (0.41, 0.5),
        "vLLM reached 0.41 with Qwen3-30B-A3B in BF16, llama.cpp 0.5 with hybrids in Q4; nobody published Kimi-Linear",
        *_STRIX_PREFILL,
    ),
    ("strix-halo", False): Efficiency(
        (0.64, 0.79), "GLM-4.7-Flash in llama.cpp, from Q8 to BF16, one sequence (kyuz0's tests)", *_STRIX_PREFILL
    ),
    ("mi355x", False): Efficiency(
        (0.18, 0.45), "Kimi-K2-Thinking in MXFP4 under ATOM on four GPUs: 4 sequences at 11.65 ms a step, 128 at 36.8"
    ),
    ("cpu", True): Efficiency(
        (0.7, 0.75), "perilune with a slice of Kimi-Linear in int4 on two cores of a server, measured (docs/log.md)"
    ),
}


def efficiency(device: str | None, spec: ModelSpec) -> Efficiency | None:
    """What is known for models of this kind on `device`, a profile's name; None if nothing is."""
    return _KNOWN.get((device or "", bool(spec.kda_layers)))
