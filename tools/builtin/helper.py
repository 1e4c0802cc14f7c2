"""A second process that computes the gradient of half of every batch.

On two cores, two processes of one thread each train almost twice as fast as one process of two threads: the
operations are small, and threads that wait for each other inside every one of them waste a core, the more so
when the machine is shared.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from builtin.network import Network

Batch = Callable[[int], tuple[Tensor, Tensor]]


def half_gradient(net: Network, batches: Batch, step: int, half: int) -> tuple[int, float]:
    """Backward over every second row of a batch, its loss as a share of the mean over all. Returns (length, loss)."""
    ids, wanted = batches(step)
    mine = slice(half, None, 2)
    logits = net.logits(net(ids[mine, :-1])[wanted[mine]])
    loss = F.cross_entropy(logits, ids[mine, 1:][wanted[mine]], reduction="sum") / wanted.sum()
    loss.backward()
    return ids.shape[1] - 1, loss.item()


class Helper:
    """Owns the process. The network's parameters move to shared memory; gradients come back through it."""

    def __init__(self, net: Network, batches: Batch) -> None:
        net.share_memory()
        self.net = net
        self.trained = [p for p in net.parameters() if p.requires_grad]
        self.gradients = [torch.zeros_like(p).share_memory_() for p in self.trained]
        context = mp.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, self.pipe, net, batches, self.gradients), daemon=True
        )
        self.process.start()
        other.close()

    def begin(self, step: int) -> None:
        """Ask for the second half of a step's gradient."""
        self.pipe.send(step)

    def finish(self) -> float:
        """Wait for it, add it to the network's own gradient and load counts; returns its share of the loss."""
        loss, loads = self.pipe.recv()
        for p, gradient in zip(self.trained, self.gradients, strict=True):
            assert p.grad is not None
            p.grad.add_(gradient)
        for layer, load in zip(self.net.moe_layers(), loads, strict=True):
            layer.load += torch.tensor(load)
        return float(loss)

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def _serve(pipe: Connection, owner: Connection, net: Network, batches: Batch, gradients: list[Tensor]) -> None:
    owner.close()  # else this process would hold its own line open and outlive a killed owner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner says when to stop
    torch.set_num_threads(1)
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    while (step := _next(pipe)) is not None:
        for p in trained:
            p.grad = None
        for layer in net.moe_layers():
            layer.load = torch.zeros(layer.count)
        _, loss = half_gradient(net, batches, step, 1)
        for p, gradient in zip(trained, gradients, strict=True):
            if p.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(p.grad)
        pipe.send((loss, [layer.load.tolist() for layer in net.moe_layers()]))


def _next(pipe: Connection) -> int | None:
    try:
        step: int | None = pipe.recv()
    except EOFError:
        return None
    return step
