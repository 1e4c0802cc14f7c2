"""How two engines of one make are told to hand a request over: which bodies, in which order, and what undoes them.

Never: which engines; that has been chosen.
"""

from __future__ import annotations

from perilune.router.contracts import perilune, sglang, vllm
from perilune.router.contracts.pair import HandOver, Pair
from perilune.router.errors import LegError
from perilune.router.legs import Legs, Opened


async def _plain(legs: Legs, pair: Pair) -> Opened:
    """Engines that cannot hand over: never asked to, since the choice knows it."""
    raise LegError("prefill", pair.prefill.name, "pd_local")


HAND_OVER: dict[str, HandOver] = {
    "perilune": perilune.hand_over, "vllm": vllm.hand_over, "sglang": sglang.hand_over, "openai-plain": _plain,
}  # fmt: skip
