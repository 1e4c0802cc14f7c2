"""How far from the roofline engines were seen, by device and kind of model. Imports no torch.

Each range was computed from rates people published, or measured here, over the bytes and operations such a model needs.
Where nobody published one there is none: the bound alone is printed then.

Two forms. Where one model was published at two widths, the time a step takes *beside* its bytes is what stays the same
(Strix Halo: Qwen3-Next in Q8 and Q4, GLM-4.7-Flash in BF16 and Q8), so it is that time that carries over to other
models, per layer. Elsewhere a share of the bound has to do. The arithmetic is in docs/log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.models.spec import ModelSpec


@dataclass(frozen=True)
class Efficiency:
    """`decode` and `prefill` are shares of their bounds, from the least seen to the most. `layer_seconds`, from the
    least to the most, is what every layer of a decode step takes beside its bytes, and stands in the place of `decode`.
    """

    decode_because: str
    decode: tuple[float, float] = (1.0, 1.0)
    layer_seconds: tuple[float, float] | None = None
    prefill: tuple[float, float] | None = None
    prefill_because: str = ""

    def decode_rates(self, bound: float, concurrency: int, layers: int) -> tuple[float, float]:
        """Tokens/s of `concurrency` sequences together, the least first, where the roofline allows `bound`."""
        if self.layer_seconds is None:
            return bound * self.decode[0], bound * self.decode[1]
        fast, slow = (concurrency / (concurrency / bound + layers * each) for each in self.layer_seconds)
        return slow, fast

    def decode_reason(self, layers: int) -> str:
        if self.layer_seconds is None:
            return f"{_words(self.decode)} of it: {self.decode_because}"
        low, high = (each * 1e3 for each in self.layer_seconds)
        return f"{low:.2f} to {high:.2f} ms more for each of {layers} layers: {self.decode_because}"

    def prefill_reason(self) -> str:
        return f"{_words(self.prefill)} of it: {self.prefill_because}" if self.prefill else ""


def _words(parts: tuple[float, float]) -> str:
    return f"{parts[0]:.0%} to {parts[1]:.0%}"


_STRIX_PREFILL = (
    (0.08, 0.21),
    "GLM-4.7-Flash in llama.cpp, empty context: 422 tok/s in BF16 under ROCm, 1,092 in Q8 under Vulkan (kyuz0's tests)",
)
_KNOWN = {
    ("strix-halo", True): Efficiency(
        "llama.cpp's hybrids, Qwen3-Next and 3.6, took 0.16 to 0.30, vLLM in eager mode 0.84 with Qwen3-30B-A3B; "
        "nobody published Kimi-Linear",
        layer_seconds=(0.16e-3, 0.84e-3),
        prefill=_STRIX_PREFILL[0],
        prefill_because=_STRIX_PREFILL[1],
    ),
    ("strix-halo", False): Efficiency(
        "GLM-4.7-Flash in llama.cpp took 0.13 in Q8 under Vulkan, 0.22 under ROCm, one sequence (kyuz0's tests)",
        layer_seconds=(0.13e-3, 0.22e-3),
        prefill=_STRIX_PREFILL[0],
        prefill_because=_STRIX_PREFILL[1],
    ),
    ("mi355x", False): Efficiency(
        "Kimi-K2-Thinking in MXFP4 under ATOM on four GPUs: 4 sequences at 11.65 ms a step, 128 at 36.8",
        decode=(0.18, 0.45),
    ),
    ("cpu", True): Efficiency(
        "perilune with a slice of Kimi-Linear in int4 on two cores of a server, measured (docs/log.md)",
        decode=(0.7, 0.75),
    ),
}


def efficiency(device: str | None, spec: ModelSpec) -> Efficiency | None:
    """What is known for models of this kind on `device`, a profile's name; None if nothing is."""
    return _KNOWN.get((device or "", bool(spec.kda_layers)))
