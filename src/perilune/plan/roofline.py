"""How fast a model can be at best: bytes it must read and operations it must do. Imports no torch.

A rate is given only where the caller knows the machine's bandwidth or compute; it is a ceiling, not a promise.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.cache.geometry import CacheGeometry
from perilune.models.quantised import INT8_GROUP
from perilune.models.spec import DTYPE_BYTES, KdaSpec, MlaSpec, ModelSpec, MoeSpec
from perilune.plan.efficiency import Efficiency
from perilune.plan.parameters import Parameters, count_parameters
from perilune.plan.workspace import CHUNK, STEP_TOKENS
from perilune.units import format_bytes


@dataclass(frozen=True)
class Roofline:
    """Traffic and work at one concurrency and depth; a reason per number in `because`.

    `read_bytes_per_token` is all traffic of one decode step divided by its tokens: weights once per step, state read
    and written, cache read. FLOPs count a multiply and an add as two. Rates are tokens/s of all sequences together;
    `expected_…` are the lowest and highest, from what engines reached of such bounds.
    """

    concurrency: int
    depth: int
    weight_bytes_per_step: int
    state_bytes_per_token: int
    cache_bytes_per_token: int
    read_bytes_per_token: int
    decode_flops_per_token: int
    prefill_flops_per_token: int
    decode_tokens_per_second: float | None
    prefill_tokens_per_second: float | None
    expected_decode: tuple[float, float] | None
    expected_prefill: tuple[float, float] | None
    because: dict[str, str]


def roofline(
    spec: ModelSpec,
    geometry: CacheGeometry,
    weights_bytes: int,
    *,
    depth: int,
    concurrency: int = 1,
    bandwidth: float | None = None,
    compute: float | None = None,
    weight_bits: int = 16,
    efficiency: Efficiency | None = None,
) -> Roofline:
    """The ceiling for `concurrency` sequences `depth` tokens deep.

    `bandwidth` in bytes/s and `compute` in FLOP/s are the machine's; without them no rate is given.
    """
    parameters = count_parameters(spec)
    each = 1 + DTYPE_BYTES["bfloat16"] / INT8_GROUP if weight_bits == 8 else DTYPE_BYTES[geometry.dtype]
    weights = step_weight_bytes(spec, parameters, weights_bytes, geometry.dtype, concurrency, each)
    state = 2 * (geometry.state_bytes + geometry.conv_bytes)
    cache = depth * geometry.bytes_per_token
    read = weights // concurrency + state + cache
    decode, prefill = decode_flops(spec, parameters, depth), prefill_flops(spec, parameters, depth)
    because = {
        "weight_bytes_per_step": f"all but routed experts and the input embedding, and the experts "
        f"that {concurrency} token(s) reach if routing is even",
        "state_bytes_per_token": "KDA state and convolution window, read and written once",
        "cache_bytes_per_token": f"{depth} tokens x {geometry.bytes_per_token} bytes of latents",
        "decode_flops_per_token": "2 x active parameters, the KDA recurrence, absorbed attention over the depth",
        "prefill_flops_per_token": "2 x active parameters without the head, chunked KDA, attention over half the depth",
    }
    decode_rate, prefill_rate = None, None
    if bandwidth:
        decode_rate = bandwidth / read
        because["decode_tokens_per_second"] = f"{format_bytes(bandwidth)}/s over {format_bytes(read)} per token"
        if compute and compute / decode < decode_rate:
            decode_rate = compute / decode
            because["decode_tokens_per_second"] = f"{compute:.3g} FLOP/s over {decode:.3g} FLOP per token"
    if compute:
        prefill_rate = compute / prefill
        because["prefill_tokens_per_second"] = f"{compute:.3g} FLOP/s over {prefill:.3g} FLOP per token"
        if bandwidth and STEP_TOKENS * bandwidth / weights_bytes < prefill_rate:
            prefill_rate = STEP_TOKENS * bandwidth / weights_bytes
            because["prefill_tokens_per_second"] = f"all weights are read once per {STEP_TOKENS} tokens"
    expected_decode = expected_prefill = None
    if efficiency and decode_rate is not None:
        expected_decode = efficiency.decode_rates(decode_rate, concurrency, len(spec.layers))
        because["expected_decode"] = efficiency.decode_reason(len(spec.layers))
    if efficiency and efficiency.prefill and prefill_rate is not None:
        expected_prefill = prefill_rate * efficiency.prefill[0], prefill_rate * efficiency.prefill[1]
        because["expected_prefill"] = efficiency.prefill_reason()
    return Roofline(
        concurrency, depth, weights, state, cache, read, decode, prefill, decode_rate, prefill_rate, expected_decode,
        expected_prefill, because,
    )  # fmt: skip


def step_weight_bytes(
    spec: ModelSpec,
    parameters: Parameters,
    weights_bytes: int,
    dtype: str,
    concurrency: int,
    each: float | None = None,
) -> int:
    """Weight bytes one decode step of `concurrency` tokens reads.

    Where `weights_bytes` is less than everything in `dtype`, the routed experts are the packed part, as in every
    int4 and MXFP4 checkpoint known (facts: 3); if that cannot be, all weights are taken to be packed alike. `each` is
    the bytes of a parameter that every token reads, where they are not those of `dtype`.
    """
    rest = parameters.embedding + parameters.head + parameters.rest
    always = parameters.always * (DTYPE_BYTES[dtype] if each is None else each)
    packed = weights_bytes - always - (rest - parameters.always) * DTYPE_BYTES[dtype]
    if packed <= 0 < parameters.experts or not parameters.experts:
        always = weights_bytes * parameters.always / parameters.total
        packed = weights_bytes * parameters.experts / parameters.total
    return int(always + packed * _expert_share(spec, concurrency))


def _expert_share(spec: ModelSpec, tokens: int) -> float:
    """The share of expert parameters that `tokens` tokens touch: 1 - (1 - k/E)^tokens per layer, routing even."""
    touched = total = 0.0
    for layer in spec.layers:
        if isinstance(layer.ffn, MoeSpec):
            size = layer.ffn.experts * layer.ffn.width
            total += size
            touched += size * (1 - (1 - layer.ffn.top_k / layer.ffn.experts) ** tokens)
    return touched / total if total else 0.0


def decode_flops(spec: ModelSpec, parameters: Parameters, depth: int) -> int:
    """One decoded token. KDA per head: decay, read, write, output = 3 K V multiply-adds. MLA absorbed, per head and
    cached token: score over R + rope, value over R."""
    work = parameters.active
    for layer in spec.layers:
        m = layer.mixer
        if isinstance(m, KdaSpec):
            work += 3 * m.heads * m.head_dim**2
        else:
            work += m.heads * depth * (m.cache_dim + m.latent_rank)
    return 2 * work


def prefill_flops(spec: ModelSpec, parameters: Parameters, depth: int) -> int:
    """One prompt token of a prompt of `depth` tokens, on average.

    KDA per head: 3 K V for the state terms, C (1.5 K + V) for the chunk's triangles. MLA expanded, per head and
    cached token: score over nope + rope, value over v; a token sees half the prompt.
    """
    head = parameters.embedding if parameters.tied else parameters.head
    work = parameters.active - head
    for layer in spec.layers:
        work += _prefill_mixer(layer.mixer, depth)
    return 2 * work


def _prefill_mixer(m: KdaSpec | MlaSpec, depth: int) -> int:
    if isinstance(m, KdaSpec):
        return m.heads * (3 * m.head_dim**2 + CHUNK * 5 * m.head_dim // 2)
    return m.heads * (depth // 2) * (m.qk_dim + m.v_dim)
