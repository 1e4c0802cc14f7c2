"""How far a recorded step has come: the GPU leaves a number in host memory on its way, readable when it has stopped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perilune.ops.gpu.kernels import leave
from perilune.ops.gpu.launch import Gpu


@dataclass(frozen=True)
class Trail:
    """One number, which kernels of a step write between the others. Steps that use it run one after another."""

    gpu: Gpu
    place: Tensor

    @classmethod
    def on(cls, gpu: Gpu, device: torch.device) -> Trail:
        """For steps on `device`; the kernel is ready when this returns."""
        trail = cls(gpu, torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda"))
        trail.leave(0)
        return trail

    def leave(self, done: int) -> None:
        """Once the kernels before it are done, so is this many of the step's."""
        self.gpu.launch(leave, (1,), self.place, done, tile=self.gpu.tile("trail"))

    def restart(self) -> None:
        """A step is about to run; none is running."""
        self.place[0] = 0

    @property
    def done(self) -> int:
        return int(self.place[0])
