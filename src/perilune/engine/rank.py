"""The process of a rank after the first: `python -m perilune.engine.rank ENDPOINT PARENT`. Obeys `orders.py`.

It holds its share of the model and its own arenas, and runs the steps that the first rank, PARENT, decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import torch
import zmq

from perilune.engine.config import plan_engine
from perilune.engine.device import open_device
from perilune.engine.door import BackDoor
from perilune.engine.graphs import capture_on
from perilune.engine.messages import WireError
from perilune.engine.orders import (
    Answer,
    Clear,
    Failed,
    Head,
    Join,
    Load,
    Loaded,
    OpenDoor,
    Order,
    ReadState,
    Record,
    Restore,
    Run,
    Settle,
    Stop,
    WritePage,
    WriteState,
)
from perilune.engine.parallel import RankLostError
from perilune.engine.ranked import group_of, load_rank
from perilune.engine.ranks import LEFT_ALONE
from perilune.engine.threads import set_threads
from perilune.errors import PeriluneError
from perilune.models.checkpoint import Checkpoint

IDLE_POLL_MS = 500


class RankProcess:
    """One rank. `parent` is the process id of the first."""

    def __init__(self, socket: zmq.Socket[bytes], parent: int) -> None:
        self._socket, self._parent = socket, parent
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Order).decode
        self._door: BackDoor | None = None

    def run(self) -> None:
        """Until Stop, or until the parent is gone."""
        load = self._next()
        if not isinstance(load, Load):
            return
        self._load(load)
        while not isinstance(order := self._next(), Stop):
            self._obey(order)

    def close(self) -> None:
        if self._door is not None:
            self._door.close()

    def say(self, answer: Answer) -> None:
        with contextlib.suppress(zmq.Again):  # the first rank is gone
            self._socket.send(self._encode(answer), zmq.NOBLOCK)

    def _next(self) -> Order:
        while not self._socket.poll(IDLE_POLL_MS):
            if os.getppid() != self._parent:
                return Stop()
        order: Order = self._decode(self._socket.recv())
        return order

    def _load(self, load: Load) -> None:
        config = load.config
        set_threads(config.threads, config.tp)
        checkpoint = Checkpoint.open(Path(load.path))
        plan = plan_engine(config, checkpoint.spec)
        self._loaded = (config, checkpoint, plan)
        self._patience = config.rank_seconds
        self._group = group_of(config, checkpoint.spec, load.rank)
        device, _ = open_device(config.device, load.rank, config.tp)
        self._runner = load_rank(config, checkpoint, plan, self._group, device)
        self._rows = torch.empty(0, checkpoint.spec.hidden, dtype=getattr(torch, plan.dtype), device=device)
        self.say(Loaded(self._runner.weight_bytes, self._runner.allocated_bytes))

    def _obey(self, order: Order) -> None:
        runner, group, arenas = self._runner, self._group, self._runner.arenas
        if isinstance(order, Run):
            runner.wait("the step before")  # if that had no logits; the first rank has waited for its own part
            runner.run(order.pieces)
        elif isinstance(order, Head):
            rows = self._rows.new_empty(order.rows, self._rows.shape[1])
            group.spread(rows)
            runner.head(rows)
            runner.wait("a step")
        elif isinstance(order, Record):
            runner.record(order.sizes, order.context, capture_on(runner.device))
        elif isinstance(order, Settle):
            runner.settle(order.eager)
        elif isinstance(order, Clear):
            runner.clear(order.slot)
        elif isinstance(order, Restore):
            runner.restore(order.source, order.slot)
        elif isinstance(order, ReadState):
            group.send(arenas.place("state", order.row), 0)
        elif isinstance(order, WriteState):
            group.receive(arenas.place("state", order.row), 0)
        elif isinstance(order, WritePage):
            group.spread(arenas.place("page", order.page))
        elif isinstance(order, OpenDoor):
            self._door = BackDoor(*self._loaded, arenas, group.rank, order.endpoint, order.model)
        else:
            assert isinstance(order, Join)
            group.connect(Path(order.folder), self._patience, runner.device.type)


def main(endpoint: str, parent: int) -> int:
    """Returns the exit status. A failure is sent before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the first rank decides
    logging.basicConfig(level=logging.INFO, format=f"{Path(endpoint).name} %(levelname)s %(name)s: %(message)s")
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        socket.setsockopt(option, 0)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.bind(endpoint)
    process = RankProcess(socket, parent)
    try:
        process.run()
        return 0
    except RankLostError as error:
        logging.getLogger(__name__).error("%s", error)
        return LEFT_ALONE
    except Exception as error:
        if not isinstance(error, PeriluneError):
            logging.getLogger(__name__).exception("the rank stopped")
        process.say(Failed(WireError.of(error)))
        return 1
    finally:
        process.close()
        socket.close()
        context.term()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
