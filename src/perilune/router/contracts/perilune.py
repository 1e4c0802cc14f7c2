"""perilune's own engines: leg 1 answers with a signed ticket, leg 2 takes it to the decode engine (docs/pd.md)."""

from __future__ import annotations

from perilune.router.contracts.pair import Pair, transfer_params
from perilune.router.errors import LegError
from perilune.router.legs import Legs, Opened

_STREAMING = ("stream", "stream_options")


async def hand_over(legs: Legs, pair: Pair) -> Opened:
    """A ticket that no decode engine has begun to answer with is taken back, whatever the reason."""
    ask = pair.ask
    asked = {name: value for name, value in ask.body.items() if name not in _STREAMING}
    asked["kv_transfer_params"] = {"do_remote_decode": True, "early": pair.early}
    params = transfer_params(pair, await legs.read("prefill", pair.prefill, ask, asked, pair.deadline))
    ticket = params.get("ticket")
    if not isinstance(ticket, str):
        raise LegError("prefill", pair.prefill.name, "no_ticket")
    used = False
    try:
        opened = await legs.open(pair.decode, ask, {**ask.body, "kv_transfer_params": params}, pair.deadline)
        used = True
        return opened
    finally:
        if not used:
            legs.tell_later(pair.prefill, "/pd/withdraw", {"ticket": ticket})
