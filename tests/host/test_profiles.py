"""Every device's numbers are there, in order of size, and each says where it is from."""

from __future__ import annotations

import pytest

from perilune.errors import ConfigError
from perilune.host.profiles import PROFILES, DeviceProfile, profile


@pytest.mark.parametrize("device", PROFILES, ids=lambda device: device.name)
def test_each_number_has_a_reason(device: DeviceProfile) -> None:
    given = {"memory", "bandwidth", "compute"}
    given |= {name for name in ("measured_bandwidth", "measured_compute") if getattr(device, name)}
    assert given <= set(device.because)


@pytest.mark.parametrize("device", PROFILES, ids=lambda device: device.name)
def test_nobody_measured_more_than_the_peak(device: DeviceProfile) -> None:
    assert (device.measured_bandwidth or 0) <= device.bandwidth
    for kind, rate in device.measured_compute.items():
        assert rate <= device.compute[kind]


def test_nodes_of_eight() -> None:
    assert 8 * 192 == 1536
    assert round(8 * (profile("mi355x").memory or 0) / 2**30) == 2304
    assert round(8 * (profile("mi300x").memory or 0) / 2**30) == 1536


def test_a_misspelt_device_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mi355x"):
        profile("mi355")
