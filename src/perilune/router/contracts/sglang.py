"""SGLang: both legs at once with the same room, a random number of its own for every attempt; D answers."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from perilune.router.contracts.pair import Pair, both
from perilune.router.legs import Legs, Opened

BOOTSTRAP_PORT = 8998


async def hand_over(legs: Legs, pair: Pair) -> Opened:
    place = pair.prefill.place
    meeting = {
        "bootstrap_host": urlsplit(place.url).hostname,
        "bootstrap_port": place.port or BOOTSTRAP_PORT,
        "bootstrap_room": secrets.randbits(63),
    }
    body = {**pair.ask.body, **meeting}
    return await both(legs, pair, body, body)
