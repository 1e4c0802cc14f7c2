"""What vLLM makes of a hybrid cache: one pool of equal pages, and what is lost by that. Imports no torch.

vLLM keeps latents and recurrent states in one pool, so a page of a layer has one size for both. The block of tokens is
grown in steps of `alignment` until its latents are as large as one layer's state, and the state is padded to that page.
Layers of one kind are dealt into groups of equal size, the last one filled up with layers that do not exist; a block is
one page for each layer of a group. Formulas: vllm/model_executor/models/config.py and vllm/v1/core/kv_cache_utils.py as
of 2026; they give the block of 960 tokens, the padding of 1.89 %, 75,840 tokens and 2.48 requests that vLLM logged for
Kimi-Linear on two GPUs (vllm issue 28228).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perilune.cache.geometry import CacheGeometry
from perilune.errors import ConfigError
from perilune.models.spec import ModelSpec
from perilune.plan.workspace import workspace
from perilune.units import format_bytes

MLA_ALIGNMENT = 64
"""Tokens. vLLM's MLA kernels read blocks of a multiple of 64, CUTLASS's of 128."""

PADDING_RATIO = 1.5
"""Groups take the larger layer count if it is below 1.5 times the smaller one, else the smaller."""

STEP_TOKENS = 8192
"""Prompt tokens in one step unless --max-num-batched-tokens says otherwise."""


@dataclass(frozen=True)
class VllmPages:
    """vLLM's pool on one rank. Bytes unless named otherwise.

    `latent_bytes` is one token's latent in one layer, `state_bytes` one layer's state and window of one sequence,
    `page_bytes` what either page takes. A block is `group_layers` pages; a sequence of T tokens takes
    ceil(T / block_tokens) blocks for each of `latent_groups` and `state_blocks` for each of `state_groups`.
    """

    block_tokens: int
    latent_bytes: int
    state_bytes: int
    page_bytes: int
    group_layers: int
    latent_groups: int
    state_groups: int
    padding_layers: int
    state_blocks: int

    @classmethod
    def of(cls, geometry: CacheGeometry, *, alignment: int = MLA_ALIGNMENT, prefix_cache: bool = False) -> VllmPages:
        """The pool for `geometry`, whose `tp` is vLLM's. With its prefix cache a state needs two blocks, else one.

        Raises ConfigError for a model without latents, or whose layers of one kind differ.
        """
        latents = {block.values * geometry.value_bytes for block in geometry.latents}
        states = {block.state_bytes + block.conv_bytes for block in geometry.states}
        if len(latents) != 1 or len(states) > 1:
            raise ConfigError("vLLM's pages are modelled for models with MLA whose layers of one kind are alike.")
        latent, state = latents.pop(), states.pop() if states else 0
        block = alignment * max(1, math.ceil(state / (alignment * latent)))
        counts = (len(geometry.latents), len(geometry.states))
        group = _group_layers([count for count in counts if count])
        groups = [math.ceil(count / group) for count in counts]
        return cls(
            block_tokens=block,
            latent_bytes=latent,
            state_bytes=state,
            page_bytes=block * latent,
            group_layers=group,
            latent_groups=groups[0],
            state_groups=groups[1],
            padding_layers=sum(groups) * group - sum(counts),
            state_blocks=2 if prefix_cache else 1,
        )

    @property
    def groups(self) -> int:
        return self.latent_groups + self.state_groups

    @property
    def block_bytes(self) -> int:
        return self.group_layers * self.page_bytes

    @property
    def padding(self) -> float:
        """By how much a state is padded, as vLLM logs it: 0.0189 is 1.89 %."""
        return self.page_bytes / self.state_bytes - 1 if self.state_bytes else 0.0

    def blocks(self, tokens: int) -> int:
        """Blocks one sequence of `tokens` tokens takes."""
        return math.ceil(tokens / self.block_tokens) * self.latent_groups + self.state_blocks * self.state_groups

    def logged_tokens(self, blocks: int) -> int:
        """`GPU KV cache size` in vLLM's log: the blocks shared evenly by all groups, states counted as tokens."""
        return blocks // self.groups * self.block_tokens

    def concurrency(self, blocks: int, tokens: int) -> float:
        """`Maximum concurrency` in vLLM's log."""
        return blocks / self.blocks(tokens)


def _group_layers(counts: list[int]) -> int:
    fewest, most = min(counts), max(counts)
    return most if most < fewest * PADDING_RATIO else fewest


@dataclass(frozen=True)
class VllmPlan:
    """vLLM at one point on one rank of `tp`. Bytes unless named otherwise; `because` has a reason per field.

    `budget_bytes` is `utilization` of the memory, `cache_bytes` what weights and workspace leave of it. `lost_bytes` is
    what the sequences of this point take beyond what perilune's two arenas would take for them.
    """

    context: int
    concurrency: int
    tp: int
    utilization: float
    block_tokens: int
    state_padding: float
    padding_layers: int
    weights_bytes: int
    workspace_bytes: int
    memory_bytes: int
    budget_bytes: int
    cache_bytes: int
    blocks: int
    blocks_per_sequence: int
    sequence_bytes: int
    lost_bytes: int
    logged_tokens: int
    max_concurrency: float
    fits: bool
    because: dict[str, str]


def plan_vllm(
    spec: ModelSpec,
    *,
    context: int,
    concurrency: int,
    weights_bytes: int,
    memory: int,
    tp: int = 1,
    utilization: float = 0.9,
    dtype: str | None = None,
    prefix_cache: bool = False,
) -> VllmPlan:
    """Plan vLLM with `memory` bytes on each of `tp` ranks; `weights_bytes` are those of the whole model.

    Raises ConfigError for a context the model does not have, a share that is none, or a `tp` no rank can hold.
    """
    if not 0 < utilization <= 1:
        raise ConfigError(f"{utilization} is no share of the memory.", "", "Use 0.85 or another number up to 1.")
    if context < 1 or concurrency < 1 or context > spec.max_context:
        raise ConfigError(f"{concurrency} x {context} tokens: the model takes 1 to {spec.max_context} tokens.")
    geometry = CacheGeometry.of(spec, dtype or spec.dtype, tp)
    pages = VllmPages.of(geometry, prefix_cache=prefix_cache)
    work, share = workspace(spec, STEP_TOKENS), math.ceil(weights_bytes / tp)
    budget = int(memory * utilization)
    left = max(0, budget - share - work.total(concurrency))
    blocks, each = left // pages.block_bytes, pages.blocks(context)
    ours, theirs = geometry.sequence_bytes(context), each * pages.block_bytes
    return VllmPlan(
        context=context,
        concurrency=concurrency,
        tp=tp,
        utilization=utilization,
        block_tokens=pages.block_tokens,
        state_padding=pages.padding,
        padding_layers=pages.padding_layers,
        weights_bytes=share,
        workspace_bytes=work.total(concurrency),
        memory_bytes=memory,
        budget_bytes=budget,
        cache_bytes=blocks * pages.block_bytes,
        blocks=blocks,
        blocks_per_sequence=each,
        sequence_bytes=theirs,
        lost_bytes=concurrency * max(0, theirs - ours),
        logged_tokens=pages.logged_tokens(blocks),
        max_concurrency=round(pages.concurrency(blocks, context), 2),
        fits=blocks >= concurrency * each,
        because=_reasons(pages, tp, utilization, memory, ours, theirs),
    )


def _reasons(pages: VllmPages, tp: int, utilization: float, memory: int, ours: int, theirs: int) -> dict[str, str]:
    grown = (
        f"latents of {pages.block_tokens} tokens in one layer are the first multiple of {MLA_ALIGNMENT} to hold "
        f"one layer's state of {format_bytes(pages.state_bytes)}"
        if pages.state_bytes
        else f"MLA kernels read {MLA_ALIGNMENT} tokens at once; there is no state to grow it"
    )
    return {
        "block_tokens": f"{grown}; prefixes are found again in steps of it",
        "state_padding": f"each state takes a page of {format_bytes(pages.page_bytes)}",
        "padding_layers": f"{pages.groups} groups of {pages.group_layers} layers, all of one size",
        "weights_bytes": "the whole model on one rank" if tp == 1 else f"an even share of {tp} ranks; an estimate",
        "workspace_bytes": f"an estimate, {STEP_TOKENS} prompt tokens per step",
        "budget_bytes": f"--gpu-memory-utilization {utilization:g} of {format_bytes(memory)}",
        "cache_bytes": f"blocks of {format_bytes(pages.block_bytes)} in what weights and workspace leave",
        "blocks_per_sequence": f"{pages.latent_groups} for each {pages.block_tokens} tokens, "
        f"{pages.state_blocks * pages.state_groups} for states",
        "sequence_bytes": f"perilune's arenas take {format_bytes(ours)}",
        "lost_bytes": f"{format_bytes(max(0, theirs - ours))} a sequence: padded states, layers that do not exist, the "
        "last block's empty end",
        "logged_tokens": "as vLLM will log it; not what one request can have, since states count as tokens in it",
        "max_concurrency": "sequences of this context at once, as vLLM will log it",
    }
