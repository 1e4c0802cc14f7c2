"""The training loop: seeded, resumable, stopped by the clock."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from builtin import optimiser, shape
from builtin.batches import TOKENS, WARM_STEPS, Batches
from builtin.chat import Encode
from builtin.helper import Helper, half_gradient
from builtin.network import Network

SAVE_SECONDS = 240.0


@dataclass(frozen=True)
class Plan:
    """`steps` in all; the rate rises over `warmup`, holds, and falls to zero over the last `decay` share."""

    steps: int = 3400
    seed: int = 1
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 20
    decay: float = 0.4
    balance: float = 1e-3
    warm_steps: int = WARM_STEPS

    def rate(self, step: int) -> float:
        """Share of the full learning rate at `step`."""
        falling = (self.steps - step) / max(1.0, self.steps * self.decay)
        return max(0.0, min(1.0, (step + 1) / self.warmup, falling))


class Trainer:
    """A network with its optimisers and its place in the plan. `load` and `save` move all of it."""

    def __init__(self, plan: Plan, encode: Encode) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.step, self.seconds, self.busiest = plan, 0, 0.0, 1.0
        self.net = Network(shape.config())
        self.optimisers = optimiser.build(self.net, plan.muon_lr, plan.adam_lr)
        self.batches = Batches(plan.seed, encode, plan.warm_steps)

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
        """Train until the plan, the time or a signal ends it; saves to `state` every few minutes and at the end."""
        began = saved = time.monotonic()
        before, shown = self.seconds, time.monotonic()
        losses: dict[int, list[float]] = defaultdict(list)
        torch.set_num_threads(1)
        helper = Helper(self.net, self.batches)
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        while not self.stopped and self.step < self.plan.steps and time.monotonic() - began < 60 * minutes:
            length, loss = self._one_step(helper)
            losses[length].append(loss)
            self.seconds = before + time.monotonic() - began
            if self.step % 25 == 0:
                now = time.monotonic()
                speed = sum(map(len, losses.values())) * TOKENS / (now - shown)
                parts = " ".join(f"loss{length} {sum(v) / len(v):.3f}" for length, v in sorted(losses.items()))
                print(f"step {self.step} rate {self.plan.rate(self.step):.2f} {parts} busiest {self.busiest:.2f} "
                      f"{speed:.0f} tok/s {self.seconds / 60:.1f} min", flush=True)  # fmt: skip
                losses, shown = defaultdict(list), now
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save(state)
                saved = time.monotonic()
        helper.close()
        self.save(state)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def _one_step(self, helper: Helper) -> tuple[int, float]:
        helper.begin(self.step)
        self.net.train()
        length, loss = half_gradient(self.net, self.batches, self.step, 0)
        loss += helper.finish()
        torch.set_num_threads(2)  # the helper waits, so both cores are free for the optimiser
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        rate = self.plan.rate(self.step)
        for made in self.optimisers:
            for group in made.param_groups:
                group["lr"] = group["initial_lr"] * rate
            made.step()
            made.zero_grad(set_to_none=True)
        torch.set_num_threads(1)
        self.busiest = max(layer.balance(self.plan.balance) for layer in self.net.moe_layers())
        self.step += 1
        return length, loss
