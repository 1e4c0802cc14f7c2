"""A prefill engine in a process of its own that stops or dies at a chosen moment. Run by test_faults.py.

prefill_process.py MOMENT SIGNAL PORT
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from pd_world import KEY, QUICK, Canonical, TestEngine, hybrid

from perilune.pd.lender import Lender
from perilune.pd.memory import Memory
from perilune.pd.messages import Envelope, Hello, Open, Release
from perilune.pd.tcp import TcpTransport

TOKENS = 300


def main(moment: str, name: str, port: int) -> None:
    def strike() -> None:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)  # a stop reaches this thread only a moment later

    moments: dict[str, type] = {"hello": Hello, "open": Open, "release": Release}
    answer = Lender._answer

    def answer_or_strike(self: Lender, envelope: Envelope) -> None:
        if moment in moments and isinstance(envelope.body, moments[moment]):
            strike()
        answer(self, envelope)

    Lender._answer = answer_or_strike  # type: ignore[method-assign]

    class Mortal(TcpTransport):
        """Answers the beacon's read, and dies over the next."""

        reads = 0

        def _answer(self, number: int, table: Any) -> Any:
            self.reads += 1
            if moment == "read" and self.reads == 2:
                strike()
            return super()._answer(number, table)

    def transport(rank: int, memory: Memory) -> TcpTransport:
        return Mortal(memory, KEY)

    engine = TestEngine("prefill", hybrid(), settings=replace(QUICK, port=port), transport=transport).start()
    canonical = Canonical(engine.spec, TOKENS)
    canonical.write(engine.arenas, [7, 3, 9, 1, 5], 2)
    print(engine.exchange.control, flush=True)
    for _line in sys.stdin:
        lease, ticket = engine.exchange.offer(range(TOKENS))
        engine.exchange.seal(lease, [7, 3, 9, 1, 5], 2, b"first token")
        print(ticket, flush=True)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
