"""Muon for matrices, AdamW for everything else.

Muon (K. Jordan, 2024): the momentum of a matrix is replaced by the nearest orthogonal matrix, found with five
Newton-Schulz steps. Matrices of one shape, experts included, go through them as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_ADAM_ONLY = ("embed_tokens", "lm_head", "conv1d", "block_sparse_moe.gate")


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """g [n, rows, cols] -> about U V^T of each g = U S V^T (singular values end between 0.7 and 1.2)."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.transpose(-1, -2) if tall else x


class Muon(torch.optim.Optimizer):
    """Parameters [rows, cols] or stacks [n, rows, cols]."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.03) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape[-2:])].append(p)
            for (rows, cols), params in shapes.items():
                update = orthogonalise(torch.cat([self._momentum(p, group["momentum"]) for p in params]))
                rate = group["lr"] * max(1.0, rows / cols) ** 0.5
                start = 0
                for p in params:
                    count = p.numel() // (rows * cols)
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.sub_(update[start : start + count].view_as(p), alpha=rate)
                    start += count

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look-ahead of the running gradient, as [n, rows, cols]."""
        state = self.state[p]
        if "running" not in state:
            state["running"] = torch.zeros_like(p)
        assert p.grad is not None
        state["running"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["running"], momentum).reshape(-1, *p.shape[-2:])


def build(network: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Both optimisers over all trainable parameters; each group remembers its full rate as `initial_lr`."""
    matrices, rest = [], []
    for name, p in network.named_parameters():
        if p.requires_grad:
            small = p.ndim < 2 or "A_log" in name or any(part in name for part in _ADAM_ONLY)
            (rest if small else matrices).append(p)
    made: list[torch.optim.Optimizer] = [
        Muon(matrices, muon_lr),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimiser in made:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return made
