"""The training loop: seeded, resumable, stopped by the clock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from builtin import network, optimiser, shape
from builtin.batches import TOKENS, Batches
from builtin.chat import Encode

SAVE_SECONDS = 240.0


@dataclass(frozen=True)
class Plan:
    """`steps` in all; the rate rises over `warmup`, holds, and falls to zero over the last `decay` share."""

    steps: int = 5000
    seed: int = 1
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 50
    decay: float = 0.4
    balance: float = 1e-3

    def rate(self, step: int) -> float:
        """Share of the full learning rate at `step`."""
        falling = (self.steps - step) / max(1.0, self.steps * self.decay)
        return max(0.0, min(1.0, (step + 1) / self.warmup, falling))


class Trainer:
    """A network with its optimisers and its place in the plan. `load` and `save` move all of it."""

    def __init__(self, plan: Plan, encode: Encode) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.step, self.seconds, self.busiest = plan, 0, 0.0, 1.0
        self.net = network.Network(shape.config())
        self.optimisers = optimiser.build(self.net, plan.muon_lr, plan.adam_lr)
        self.batches = Batches(plan.seed, encode)

    def compile(self) -> None:
        """Fuse the element-wise work of the KDA layers; once per row length, about a minute each."""
        for layer in self.net.model.layers:
            if isinstance(layer.self_attn, network.Kda):
                layer.self_attn.compile(dynamic=False)

    def save(self, path: Path) -> None:
        """Written beside and renamed, so that a kill leaves the old file or the new one."""
        state: dict[str, Any] = {
            "net": self.net.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Continue from `save`. The plan's rates are taken from this run, not from the file."""
        state = torch.load(path)
        self.net.load_state_dict(state["net"])
        for made, stored in zip(self.optimisers, state["optimisers"], strict=True):
            made.load_state_dict(stored)
        for group, lr in zip(
            (g for o in self.optimisers for g in o.param_groups), (self.plan.muon_lr, self.plan.adam_lr), strict=True
        ):
            group["initial_lr"] = lr
        self.step, self.seconds = state["step"], state["seconds"]

    def run(self, state: Path, minutes: float) -> None:
        """Train until the plan or the time ends; saves to `state` every few minutes and at the end."""
        began = saved = time.monotonic()
        before, shown, losses = self.seconds, time.monotonic(), []
        while self.step < self.plan.steps and time.monotonic() - began < 60 * minutes:
            losses.append(self._one_step())
            self.seconds = before + time.monotonic() - began
            if self.step % 50 == 0:
                now = time.monotonic()
                speed = 50 * TOKENS / (now - shown)
                mean = {k: sum(v) / len(v) for k in losses[0] if (v := [x[k] for x in losses if k in x])}
                parts = " ".join(f"{k} {v:.3f}" for k, v in mean.items())
                print(f"step {self.step} rate {self.plan.rate(self.step):.2f} {parts} busiest {self.busiest:.2f} "
                      f"{speed:.0f} tok/s {self.seconds / 60:.1f} min", flush=True)  # fmt: skip
                losses, shown = [], now
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save(state)
                saved = time.monotonic()
        self.save(state)

    def _one_step(self) -> dict[str, float]:
        ids, wanted = self.batches(self.step)
        self.net.train()
        logits = self.net.logits(self.net(ids[:, :-1])[wanted])
        loss = F.cross_entropy(logits, ids[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        rate = self.plan.rate(self.step)
        for made in self.optimisers:
            for group in made.param_groups:
                group["lr"] = group["initial_lr"] * rate
            made.step()
            made.zero_grad(set_to_none=True)
        self.busiest = max(layer.balance(self.plan.balance) for layer in self.net.moe_layers())
        self.step += 1
        return {f"loss{ids.shape[1] - 1}": loss.item()}
