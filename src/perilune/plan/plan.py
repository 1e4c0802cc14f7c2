"""Will it fit: the bytes of weights, cache and workspace beside the memory there is. Imports no torch, probes nothing.

The cache is sized by the function the engine calls, so `cache_bytes` is what it then allocates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perilune.cache.budget import default_snapshots, plan_cache
from perilune.cache.geometry import PAGE_TOKENS, CacheGeometry
from perilune.errors import ConfigError
from perilune.models.share import Share, narrow
from perilune.models.spec import ModelSpec
from perilune.plan.device import Machine
from perilune.plan.efficiency import efficiency
from perilune.plan.parameters import count_parameters
from perilune.plan.reasons import cache_reasons, sequences, why_context, why_fits
from perilune.plan.roofline import Roofline, roofline
from perilune.plan.snapshots import break_even_tokens, copy_tokens, snapshot_reasons
from perilune.plan.workspace import GPU_BYTES, PROCESS_BYTES, STEP_TOKENS, Workspace, gpu_workspace, workspace
from perilune.units import format_bytes


@dataclass(frozen=True)
class Plan:
    """One model at one context and concurrency in one memory. Bytes unless named otherwise.

    Of `tp` ranks that share the model, bytes and rates are those of the one that holds most; each has such a memory.
    `rank_weights_bytes` are all ranks', in their order; the cache is the same on each. `file_bytes` of the embedding
    stay in the checkpoint's files and are in no sum.

    `max_context` is the largest context for `concurrency` sequences, `max_concurrency` the most sequences of
    `context` tokens; 0 where nothing fits. The prefix cache has `snapshot_slots` rows of `slot_bytes` beside the
    running ones, counted in `cache_bytes`; `max_snapshots` is how many would fit in all. `snapshot_break_even_tokens`
    is the prompt whose latents take as many bytes as one snapshot, `snapshot_copy_tokens` the prompt that is
    computed while one snapshot is copied (None without rates): reuse pays from there. `roofline` is at the full context
    of all sequences, `alone` of one sequence whose context is empty. `because` holds one short reason per number, by
    field name.
    """

    architecture: str
    layers: int
    kda_layers: int
    mla_layers: int
    parameters_total: int
    parameters_active: int
    dtype: str
    context: int
    concurrency: int
    weights_bytes: int
    file_bytes: int
    cache_bytes_per_token: int
    state_bytes_per_sequence: int
    pages: int
    page_bytes: int
    slots: int
    slot_bytes: int
    snapshot_slots: int
    max_snapshots: int
    snapshot_break_even_tokens: int | None
    snapshot_copy_tokens: int | None
    cache_bytes: int
    workspace_bytes: int
    total_bytes: int
    memory_bytes: int
    max_context: int
    max_concurrency: int
    fits: bool
    roofline: Roofline
    alone: Roofline
    because: dict[str, str]
    tp: int = 1
    rank_weights_bytes: tuple[int, ...] = ()


def plan_model(
    spec: ModelSpec,
    machine: Machine,
    *,
    context: int,
    concurrency: int,
    weights_bytes: int | Sequence[int],
    weights_source: str = "as held in memory",
    file_bytes: int | Sequence[int] = 0,
    dtype: str | None = None,
    weight_bits: int = 16,
    step_tokens: int = STEP_TOKENS,
    prefix_cache: bool = True,
    ep: bool = False,
) -> Plan:
    """Plan `concurrency` sequences of `context` tokens on `machine`; `dtype=None` is the checkpoint's own.

    `weights_bytes` is the sum, or one number per rank for ranks that share the model, with `ep` by whole experts;
    `file_bytes`, as many numbers, what of the embedding stays in its file;
    `weight_bits` 8 says that dense matrices are rounded in it. What the machine's rates are, if known, adds expected
    ones.
    Raises ConfigError for a context the model does not have, a number below 1, a dtype that holds no cache, or ranks
    that cannot share the model.
    """
    if context > spec.max_context:
        raise ConfigError(
            f"A context of {context} tokens is more than the model's {spec.max_context}.",
            "The checkpoint's config sets the limit.",
            f"Ask for {spec.max_context} or less.",
        )
    each = (weights_bytes,) if isinstance(weights_bytes, int) else tuple(weights_bytes)
    in_files = (file_bytes,) if isinstance(file_bytes, int) else tuple(file_bytes)
    weights_bytes, tp = max(each), len(each)
    left = in_files[each.index(weights_bytes)]
    share, machine = Share(tp, each.index(weights_bytes), ep), machine.of_rank(tp)
    own = narrow(spec, share)
    geometry = CacheGeometry.of(spec, dtype or spec.dtype, tp)
    cache = plan_cache(geometry, context, concurrency, snapshots=None if prefix_cache else 0)
    parameters = count_parameters(spec)
    work = gpu_workspace(own, step_tokens) if machine.gpu else workspace(own, step_tokens)
    memory = machine.memory
    need = weights_bytes + cache.total_bytes + work.total(concurrency)
    rows_each = 1 + (default_snapshots(geometry, 1) if prefix_cache else 0)
    room = _Room(spec, geometry, work, memory - weights_bytes, rows_each)
    reach, crowd = room.max_context(concurrency), room.max_concurrency(context)
    fits = need <= memory
    # a rank's traffic is that of a model of its size; experts shared whole are as many bytes as shared by width
    read = replace(narrow(spec, Share(tp, share.rank)), vocab=len(share.of(spec.vocab)))
    speed, alone = (
        roofline(
            read, geometry, weights_bytes + left,
            depth=depth, concurrency=together, bandwidth=machine.bandwidth, compute=machine.compute,
            weight_bits=weight_bits, efficiency=efficiency(machine.name, spec),
        )
        for depth, together in ((context, concurrency), (0, 1))
    )  # fmt: skip
    spare = max(0, memory - need) // cache.slot_bytes if cache.slot_bytes else 0
    because = {
        "parameters_total": "counted from the config's shapes",
        "parameters_active": "what one token reads: all but the input embedding and the experts it is not sent to",
        "dtype": "the checkpoint's own" if dtype in (None, spec.dtype) else f"as set; the checkpoint is {spec.dtype}",
        "weights_bytes": weights_source + _of_ranks(share, each),
        "file_bytes": "the embedding stays in its file: a step reads a row of it per token, through memory that the "
        "system takes back when others want it"
        if left
        else "the whole embedding is in memory",
        **cache_reasons(geometry, cache, concurrency, context),
        **snapshot_reasons(geometry, cache, speed),
        "workspace_bytes": f"an estimate: {format_bytes(GPU_BYTES if machine.gpu else PROCESS_BYTES)} of libraries, "
        f"{step_tokens} prompt tokens per step through the widest layer"
        f"{'' if machine.gpu else ' in fp32'}, logits of {sequences(concurrency)}",
        "total_bytes": "weights + cache + workspace",
        "memory_bytes": machine.source,
        "max_context": why_context(spec, reach, concurrency),
        "max_concurrency": f"whole sequences of {context} tokens in what the weights leave",
        "fits": why_fits(need, memory, weights_bytes + work.total(1), reach, crowd),
    }
    return Plan(
        architecture=spec.architecture,
        layers=len(spec.layers),
        kda_layers=len(spec.kda_layers),
        mla_layers=len(spec.mla_layers),
        parameters_total=parameters.total,
        parameters_active=parameters.active,
        dtype=geometry.dtype,
        context=context,
        concurrency=concurrency,
        weights_bytes=weights_bytes,
        file_bytes=left,
        cache_bytes_per_token=geometry.bytes_per_token,
        state_bytes_per_sequence=geometry.slot_bytes,
        pages=cache.pages,
        page_bytes=cache.page_bytes,
        slots=cache.slots,
        slot_bytes=cache.slot_bytes,
        snapshot_slots=cache.snapshots,
        max_snapshots=cache.snapshots + spare if fits else 0,
        snapshot_break_even_tokens=break_even_tokens(geometry),
        snapshot_copy_tokens=copy_tokens(geometry, speed, machine.bandwidth),
        cache_bytes=cache.total_bytes,
        workspace_bytes=work.total(concurrency),
        total_bytes=need,
        memory_bytes=memory,
        max_context=reach,
        max_concurrency=crowd,
        fits=fits,
        roofline=speed,
        alone=alone,
        because=because,
        tp=tp,
        rank_weights_bytes=each,
    )


def _of_ranks(share: Share, each: Sequence[int]) -> str:
    if share.tp == 1:
        return ""
    least = "" if min(each) == max(each) else f", the others from {format_bytes(min(each))}"
    return f"; rank {share.rank} of {share.tp}{least}, experts shared {'whole' if share.ep else 'by width'}"


@dataclass(frozen=True)
class _Room:
    """What is left beside the weights, and how far it reaches."""

    spec: ModelSpec
    geometry: CacheGeometry
    work: Workspace
    left: int
    rows_each: int

    def max_context(self, concurrency: int) -> int:
        """The largest context for `concurrency` sequences, whole pages or the model's limit; 0 if none."""
        free = self.left - self.work.total(concurrency) - concurrency * self.rows_each * self.geometry.slot_bytes
        if free < concurrency * self.geometry.page_bytes:
            return 0
        if not self.geometry.page_bytes:
            return self.spec.max_context
        pages = free // (concurrency * self.geometry.page_bytes)
        return min(self.spec.max_context, pages * PAGE_TOKENS)

    def max_concurrency(self, context: int) -> int:
        """The most sequences of `context` tokens; 0 if not even one."""
        kept = (self.rows_each - 1) * self.geometry.slot_bytes
        each = self.geometry.sequence_bytes(context) + kept + self.work.sequence_bytes
        return max(0, (self.left - self.work.step_bytes) // each)
