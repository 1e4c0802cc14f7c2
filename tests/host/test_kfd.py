"""KFD's codes and addresses."""

from __future__ import annotations

import pytest
from bundles import Memory, load

from perilune.host.doctor import choose_target
from perilune.host.kfd import KfdNode, bus_address, gfx_name
from perilune.host.rule import Target
from perilune.host.sysroot import Sysroot


@pytest.mark.parametrize(
    ("code", "name"),
    [(110501, "gfx1151"), (90402, "gfx942"), (90500, "gfx950"), (90010, "gfx90a"), (110000, "gfx1100")],
)
def test_gfx_codes(code: int, name: str) -> None:
    assert gfx_name(code) == name


@pytest.mark.parametrize(
    ("domain", "location", "address"),
    [(0, 50432, "0000:c5:00.0"), (0, 25856, "0000:65:00.0"), (0, 5376, "0000:15:00.0"), (1, 0x1234, "0001:12:06.4")],
)
def test_bus_addresses(domain: int, location: int, address: str) -> None:
    assert bus_address(domain, location) == address


def test_values_that_are_no_numbers_are_left_out() -> None:
    node = KfdNode.parse("", "simd_count 80\nfw_version N/A\nempty\n\ngfx_target_version 110501 \nodd 0x10\n")
    assert node.values == {"simd_count": 80, "gfx_target_version": 110501, "odd": 16}
    assert node.is_gpu
    assert not node.is_cpu


def test_a_node_that_says_nothing_is_neither_gpu_nor_processor() -> None:
    node = KfdNode.parse("", "")
    assert not node.is_gpu
    assert not node.is_cpu


@pytest.mark.parametrize(
    ("name", "target"),
    [("reconstructed/strix-good", Target.STRIX_HALO), ("observed/2.11-mi300x", Target.MI300X),
     ("observed/2.12-mi350x", Target.MI355X), ("observed/2.20", Target.CPU)],
)  # fmt: skip
def test_the_target_is_what_kfd_lists(name: str, target: Target) -> None:
    bundle = {} if name == "observed/2.20" else load(name)
    assert choose_target(Sysroot(Memory(bundle)))[0] is target


def test_without_a_driver_pci_tells_the_target() -> None:
    bundle = {key: text for key, text in load("reconstructed/strix-good").items() if "kfd" not in key[1]}
    target, chosen = choose_target(Sysroot(Memory(bundle)))
    assert target is Target.STRIX_HALO
    assert "KFD does not" in chosen


def test_an_unknown_amd_gpu_is_named_and_not_taken_for_another() -> None:
    bundle = {("file", "/sys/class/kfd/kfd/topology/nodes/1/properties"): "simd_count 96\ngfx_target_version 110000\n"}
    target, chosen = choose_target(Sysroot(Memory(bundle)))
    assert target is Target.CPU
    assert "gfx1100" in chosen


def test_the_nvidia_driver_is_seen() -> None:
    bundle = {("file", "/proc/driver/nvidia/version"): "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n"}
    assert choose_target(Sysroot(Memory(bundle)))[0] is Target.NVIDIA
