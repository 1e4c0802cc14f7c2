"""Devices as the planner sees them: memory, bandwidth and compute, each number with where it is from.

Peaks are the vendors' figures for dense matrices as repeated by secondary pages; `measured_…` are what people got. Plan
with the measured ones where there are any. A profile is a default: what the doctor reads on a host is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from perilune.errors import ConfigError, nearest
from perilune.host.rule import Target
from perilune.units import GIB, MIB


@dataclass(frozen=True)
class DeviceProfile:
    """One device. Memory in bytes that a process can have, bandwidth in bytes/s, compute in FLOP/s by number format.

    `compute` has no entry for a format the device has no matrix instructions for: weights in it are computed in
    another, usually bf16. `unified` says that the memory is the system's too. `because` has a reason per field name.
    """

    name: str
    title: str
    target: Target
    chip: str
    memory: int | None
    unified: bool
    bandwidth: float
    measured_bandwidth: float | None
    compute: Mapping[str, float]
    measured_compute: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    because: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def _frozen(**values: float) -> Mapping[str, float]:
    return MappingProxyType(values)


_SHEETS = "vendor's figure for dense matrices, from secondary pages"

PROFILES: tuple[DeviceProfile, ...] = (
    DeviceProfile(
        name="strix-halo",
        title="AMD Ryzen AI Max+ 395, 128 GB",
        target=Target.STRIX_HALO,
        chip="gfx1151",
        memory=110 * GIB,
        unified=True,
        bandwidth=256e9,
        measured_bandwidth=212.6e9,
        compute=_frozen(bf16=59.4e12, int8=59.4e12, int4=118.8e12),
        measured_compute=_frozen(bf16=36.9e12),
        because=MappingProxyType(
            {
                "memory": "ttm.pages_limit of 110 GiB, AMD's value for long contexts; up to 120 without a desktop",
                "bandwidth": "LPDDR5X-8000, 256 bit",
                "measured_bandwidth": "copies on the GPU under ROCm (kyuz0's and lhl's tests); reads give 204-221",
                "compute": "512 operations a clock and CU x 40 CU x 2.9 GHz; int8 the same, int4 twice that",
                "measured_compute": "best published bf16 matrix product",
                "fp8": "no instructions: decoding FP8 weights was seen at a seventh of BF16's rate",
            }
        ),
    ),
    DeviceProfile(
        name="mi300x",
        title="AMD Instinct MI300X, 192 GB",
        target=Target.MI300X,
        chip="gfx942",
        memory=206_141_652_992,
        unified=False,
        bandwidth=5.3e12,
        measured_bandwidth=None,
        compute=_frozen(bf16=1307e12, fp8=2615e12),
        because=MappingProxyType(
            {
                "memory": "rocm-smi on hosts in public reports",
                "bandwidth": _SHEETS,
                "compute": f"{_SHEETS}; FP8 is fnuz",
            }
        ),
    ),
    DeviceProfile(
        name="mi355x",
        title="AMD Instinct MI355X, 288 GB",
        target=Target.MI355X,
        chip="gfx950",
        memory=309_220_868_096,
        unified=False,
        bandwidth=8e12,
        measured_bandwidth=None,
        compute=_frozen(bf16=2500e12, fp8=5000e12, fp4=10000e12),
        because=MappingProxyType(
            {
                "memory": "rocminfo's pool of 301973504 KB (ROCm issue 5891)",
                "bandwidth": _SHEETS,
                "compute": f"{_SHEETS}, rounded; FP4 is MXFP4 and MXFP6",
            }
        ),
    ),
    DeviceProfile(
        name="h200",
        title="NVIDIA H200 SXM, 141 GB",
        target=Target.NVIDIA,
        chip="sm_90",
        memory=143_771 * MIB,
        unified=False,
        bandwidth=4.8e12,
        measured_bandwidth=None,
        compute=_frozen(bf16=989e12, fp8=1979e12),
        because=MappingProxyType(
            {
                "memory": "what nvidia-smi shows as total; from memory, not read again here",
                "bandwidth": "NVIDIA's data sheet; from memory",
                "compute": "half of the data sheet's figures, which are for sparse matrices; from memory",
            }
        ),
    ),
    DeviceProfile(
        name="cpu",
        title="a desktop processor, two channels of DDR5-5600, eight cores",
        target=Target.CPU,
        chip="x86-64",
        memory=None,
        unified=True,
        bandwidth=89.6e9,
        measured_bandwidth=None,
        compute=_frozen(fp32=0.9e12),
        because=MappingProxyType(
            {
                "memory": "the host's own: what is available when the planner looks",
                "bandwidth": "2 channels x 8 bytes x 5.6e9 transfers/s",
                "compute": "8 cores x 3.5 GHz x 32 FLOP a clock, two 256-bit multiply-adds",
            }
        ),
    ),
)


def profile(name: str) -> DeviceProfile:
    """The profile called `name`. Raises ConfigError naming the nearest one."""
    for found in PROFILES:
        if found.name == name:
            return found
    raise ConfigError(f"No device is called {name!r}.", "", nearest(name, [found.name for found in PROFILES]))
