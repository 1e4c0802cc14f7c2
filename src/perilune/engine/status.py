"""What a router wants to know of an engine (docs/pd.md): who it is, what is free, what waits, how fast it is."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, islice
from typing import Any

from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.radix import Node, path_to
from perilune.cache.tier import Rate
from perilune.engine.handover import Handover
from perilune.engine.scheduler import Scheduler, Sequence
from perilune.pd.ticket import prompt_digest

LISTED = 64
_LOOKED_UP = 32  # waiting prompts whose hit is counted; the others count whole
_HASHED = 8  # new prefixes per question: a long one takes milliseconds
_REMEMBERED = 1024


class RouterStatus:
    """`probed`: bytes/s of the best transport as measured at start, until caches have moved for real."""

    def __init__(self, handover: Handover, scheduler: Scheduler, computing: Rate, probed: float, context: int) -> None:
        self._handover, self._scheduler, self._cache = handover, scheduler, scheduler.cache
        self._computing, self._probed, self._context = computing, probed, context
        self._digests: OrderedDict[int, str] = OrderedDict()  # by a node's trace

    def report(self) -> dict[str, Any]:
        """Plain values. Answered between two steps."""
        exchange, plan = self._handover.exchange, self._cache.plan
        described, tables = exchange.describe(), exchange.describe().rendezvous.tables
        counters = exchange.counters
        regions = tables[0].regions
        return {
            "engine": exchange.engine,
            "incarnation": exchange.incarnation,
            "role": self._handover.config.role,
            "model_digest": tables[0].model,
            "tp": len(tables),
            "context": self._context,
            "key": self._handover.key_name,
            "control": described.control,
            "transports": list(exchange.transports),
            "slots": {"total": plan.slots, "free": plan.slots - self._cache.holders},
            "pages": {"total": plan.pages, "free": self._cache.pages_at_hand, "tokens": PAGE_TOKENS},
            "queue": {
                "running": len(self._scheduler.running),
                "waiting": len(self._scheduler.waiting),
                "uncached_tokens": self._uncached(),
                "receiving": self._handover.receiving,
                "lending": self._handover.lending,
            },
            "cost": {
                "token_bytes": sum(region.item_bytes for region in regions if region.pool == "pages"),
                "state_bytes": sum(
                    region.place_bytes for table in tables for region in table.regions if region.pool == "slots"
                ),
            },
            "rates": {
                "prefill_tokens_per_second": self._computing.per_second,
                "link_bytes_per_second": counters.link_bytes_per_second or self._probed,
            },
            "prefixes": self._prefixes(),
            "totals": counters.named(),
        }

    def _uncached(self) -> int:
        """Prompt tokens that are still to be computed here."""
        running = sum(max(0, len(s.prompt) - s.computed) for s in self._scheduler.running if not s.remote)
        waiting = [s for s in self._scheduler.waiting if not s.remote]
        looked_up = sum(len(s.prompt) - self._found(s) for s in islice(waiting, _LOOKED_UP))
        return running + looked_up + sum(len(s.prompt) for s in islice(waiting, _LOOKED_UP, None))

    def _found(self, sequence: Sequence) -> int:
        return self._cache.known(sequence.prompt, sequence.salt, sequence.reusable).tokens

    def _prefixes(self) -> list[dict[str, Any]]:
        """Where prefill could start from, latest use first; those of a salt are nobody else's business."""
        nodes = sorted((n for n in self._cache.kept() if not n.salt), key=lambda n: n.used, reverse=True)[:LISTED]
        fresh = [node for node in nodes if node.trace not in self._digests]
        for node in fresh[:_HASHED]:
            self._digests[node.trace] = _digest(node)
        while len(self._digests) > _REMEMBERED:
            self._digests.popitem(last=False)
        known = [(node, digest) for node in nodes if (digest := self._digests.get(node.trace))]
        return [{"tokens": node.length, "digest": digest} for node, digest in known]


def _digest(node: Node) -> str:
    return prompt_digest(list(chain.from_iterable(step.key for step in path_to(node)))).hex()
