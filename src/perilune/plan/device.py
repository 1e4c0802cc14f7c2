"""Planning for a named device instead of the machine the planner runs on. Imports no torch, probes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from perilune.host.profiles import DeviceProfile


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know: bytes, bytes/s, FLOP/s, None where not known; `source` says whose they are."""

    memory: int | None
    source: str
    bandwidth: float | None
    compute: float | None


def machine_of(device: DeviceProfile) -> Machine:
    """One device. Rates that were measured come before the vendor's; compute is that of bf16, or else of fp32.

    Several devices are not one larger one: a latent cache is kept whole on every rank of a tensor-parallel group.
    """
    formats = ("bf16", "fp32")
    rates = [rates[kind] for rates in (device.measured_compute, device.compute) for kind in formats if kind in rates]
    return Machine(
        device.memory,
        f"{device.title}: {device.because['memory']}",
        device.measured_bandwidth or device.bandwidth,
        rates[0] if rates else None,
    )
