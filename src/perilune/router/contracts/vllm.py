"""vLLM with its NIXL connector. Pull: leg 1 prefills and answers where its blocks are, leg 2 goes there with that.

Push: both legs at once, since D only needs to know who P is. That is learned from P's first answer (`transfer_mode`),
so the first request to an engine goes the way of pull; a P that restarts is forgotten.
"""

from __future__ import annotations

import uuid
from typing import Any

from perilune.router.contracts.pair import Pair, both, transfer_params
from perilune.router.errors import LegError
from perilune.router.legs import Legs, Opened

_DROPPED = ("stream_options", "min_tokens")
_NOBODY = {"remote_engine_id": None, "remote_block_ids": None, "remote_host": None, "remote_port": None}
_WHO = ("remote_engine_id", "remote_host", "remote_port", "tp_size")


async def hand_over(legs: Legs, pair: Pair) -> Opened:
    if pair.prefill.push is not None:
        transfer = {"transfer_id": uuid.uuid4().hex}
        target = {"do_remote_prefill": True, "do_remote_decode": False, **pair.prefill.push, **transfer}
        try:
            return await both(legs, pair, _first(pair, transfer), {**pair.ask.body, "kv_transfer_params": target})
        except LegError:
            pair.prefill.push = None  # it may be another process by now
            raise
    answer = await legs.read("prefill", pair.prefill, pair.ask, _first(pair, {}), pair.deadline)
    params = transfer_params(pair, answer)
    if params.get("transfer_mode") == "push":
        pair.prefill.push = {name: params[name] for name in _WHO if name in params}
    return await legs.open(pair.decode, pair.ask, {**pair.ask.body, "kv_transfer_params": params}, pair.deadline)


def _first(pair: Pair, transfer: dict[str, str]) -> dict[str, Any]:
    """Leg 1: one token, which vLLM's D does not take over and draws again."""
    body = {name: value for name, value in pair.ask.body.items() if name not in _DROPPED}
    body |= {"stream": False, "max_tokens": 1}
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1
    body["kv_transfer_params"] = {"do_remote_decode": True, "do_remote_prefill": False, **_NOBODY, **transfer}
    return body
