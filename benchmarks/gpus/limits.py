"""What this device can do at best, measured by what torch has for it: reading memory, and bf16 products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gpus.clock import Clock


@dataclass(frozen=True)
class Limits:
    """`read` in GB/s, `bfloat16` in GFLOP/s; `memory` bytes of the device."""

    name: str
    arch: str
    memory: int
    read: float
    bfloat16: float

    @property
    def fastest(self) -> float:
        """The fastest product, in operations per nanosecond."""
        return self.bfloat16

    @property
    def line(self) -> str:
        return f"{self.name} ({self.arch}): read {self.read:,.0f} GB/s, bf16 {self.bfloat16 / 1e3:,.1f} TFLOP/s"


def measure_limits(clock: Clock, arch: str) -> Limits:
    """Reading 1 GiB to sum it, and a square product at 8,192; each at its best, since a limit is no average."""
    device, here = clock.device, clock.device.type == "cpu"
    big = torch.ones((1 << 20 if here else 1 << 30) // 4, device=device)
    n = 64 if here else 8192
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    return Limits(
        name="a processor that interprets" if here else torch.cuda.get_device_name(device),
        arch=arch,
        memory=0 if here else torch.cuda.get_device_properties(device).total_memory,
        read=big.nbytes / min(clock.samples(big.sum)) / 1e9,
        bfloat16=2 * n**3 / min(clock.samples(lambda: a @ b)) / 1e9,
    )
