"""The machine a plan is for: what a profile describes, or numbers about this one. Imports no torch, probes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perilune.host.profiles import DeviceProfile
from perilune.host.rule import Target


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of one device: bytes, bytes/s, FLOP/s, None where not known; `source` says whose.

    `name` is the profile's, for what is known of how near to its bounds engines come. `one_memory`: ranks that share a
    model share the device too, as on a CPU; else each has a device like this. `gpu`: it computes with a GPU's kernels.
    """

    memory: int
    source: str = "as given"
    bandwidth: float | None = None
    compute: float | None = None
    name: str | None = None
    one_memory: bool = True
    gpu: bool = False

    def of_rank(self, ranks: int) -> Machine:
        """What one of `ranks` has."""
        if ranks == 1 or not self.one_memory:
            return self
        return replace(
            self,
            memory=self.memory // ranks,
            source=f"{self.source}, shared by {ranks} ranks",
            bandwidth=None if self.bandwidth is None else self.bandwidth / ranks,
            compute=None if self.compute is None else self.compute / ranks,
        )


def machine_of(device: DeviceProfile, memory: tuple[int, str] | None = None) -> Machine:
    """One device. Rates that were measured come before the vendor's; compute is that of bf16, or else of fp32.

    `memory`, bytes and whose they are, stands in for the profile's, and must where it has none.
    Several devices are not one larger one: a latent cache is kept whole on every rank of a tensor-parallel group.
    """
    formats = ("bf16", "fp32")
    rates = [rates[kind] for rates in (device.measured_compute, device.compute) for kind in formats if kind in rates]
    if memory is None:
        assert device.memory is not None, f"{device.name} has the memory of the host it is in"
        memory = (device.memory, f"{device.title}: {device.because['memory']}")
    bandwidth = device.measured_bandwidth or device.bandwidth
    return Machine(
        *memory, bandwidth, rates[0] if rates else None, device.name, device.unified, device.target is not Target.CPU
    )
