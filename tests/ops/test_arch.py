"""A GPU that is in no table is served by defaults; one that cannot be served is named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from perilune.ops.gpu import cases
from perilune.ops.gpu.arch import ARCHES, KIB, Arch, present


def has(monkeypatch: pytest.MonkeyPatch, hip: str | None, **properties: object) -> None:
    """Torch with one GPU of such properties."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties))


@pytest.mark.parametrize(
    ("code", "name", "wave"),
    [("gfx1151", "gfx1151", 32), ("gfx942:sramecc+:xnack-", "gfx942", 64), ("gfx1100", "gfx1100", 32),
     ("gfx1201", "gfx1201", 32), ("gfx90a:sramecc+", "gfx90a", 64)],
)  # fmt: skip
def test_amds_gpus_have_the_waves_of_their_generation(
    monkeypatch: pytest.MonkeyPatch, code: str, name: str, wave: int
) -> None:
    has(monkeypatch, "7.0", gcnArchName=code, multi_processor_count=96)
    arch = present()
    assert isinstance(arch, Arch)
    assert (arch.name, arch.target.arch, arch.warp) == (name, name, wave)
    assert arch == ARCHES.get(name, arch)
    assert arch.shared >= 64 * KIB


def test_nvidias_gpus_are_served_from_8_0_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for major, minor in ((7, 5), (8, 0), (9, 0), (12, 0)):
        has(monkeypatch, None, major=major, minor=minor, multi_processor_count=100)
        found[major, minor] = present()
    assert found[9, 0] == ARCHES["sm_90"]
    assert found[12, 0] == Arch("sm_120", "cuda", 120, 32, 99 * KIB, 100)
    assert isinstance(found[8, 0], Arch)
    assert "7.5: bfloat16 products need 8.0" in str(found[7, 5])


@pytest.mark.parametrize(
    "arch", [Arch("gfx1100", "hip", "gfx1100", 32, 64 * KIB, 96), Arch("sm_80", "cuda", 80, 32, 99 * KIB, 108)]
)
def test_every_kernel_and_format_has_a_tile_where_no_table_has_an_entry(arch: Arch) -> None:
    known = {(launch.name, launch.form) for launch in cases.launches(ARCHES["gfx1151"])}
    assert {(launch.name, launch.form) for launch in cases.launches(arch)} == known
