"""Planning for a device one does not have, and the picture of what fits."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from perilune.host.profiles import PROFILES, profile
from perilune.models.config import read_config
from perilune.plan.curves import curves, picture
from perilune.plan.device import Machine, machine_of
from perilune.plan.plan import Plan, plan_model
from perilune.units import GIB


def planner(configs: Path, memory: int, model: str = "kimi-linear-48b"):
    spec = read_config(configs / model).spec

    def plan_at(context: int, concurrency: int) -> Plan:
        return plan_model(spec, Machine(memory), context=context, concurrency=concurrency, weights_bytes=30 * GIB)

    return plan_at, spec.max_context


@pytest.mark.parametrize("device", PROFILES, ids=lambda device: device.name)
def test_measured_rates_come_first(device) -> None:
    machine = machine_of(device, None if device.memory else (GIB, device.title))
    assert machine.memory == device.memory or device.memory is None
    assert machine.bandwidth == (device.measured_bandwidth or device.bandwidth)
    assert machine.compute
    assert device.title in machine.source


def test_kimi_linear_on_a_strix_halo_box(configs: Path) -> None:
    spec = read_config(configs / "kimi-linear-48b").spec
    plan = plan_model(
        spec, machine_of(profile("strix-halo")), context=1 << 20, concurrency=2, weights_bytes=30_500_000_000
    )
    assert plan.fits
    assert plan.max_context == 1 << 20


def test_points_are_plans_and_grow(configs: Path) -> None:
    plan_at, most = planner(configs, 64 * GIB)
    found = curves(plan_at, most, (4, 1, 4))
    assert [curve.concurrency for curve in found] == [1, 4]
    for curve in found:
        sizes = [size for _, size in curve.points]
        assert sizes == sorted(sizes)
        assert [context for context, _ in curve.points][-1] == most
        for context, size in curve.points:
            assert size == plan_at(context, curve.concurrency).total_bytes
            assert (context <= curve.reach) == (size <= 64 * GIB)


def test_the_model_limit_below_the_smallest_point_is_the_only_point(configs: Path) -> None:
    plan_at, _ = planner(configs, 64 * GIB)
    (curve,) = curves(plan_at, 640, (1,))
    assert [context for context, _ in curve.points] == [640]


@pytest.mark.parametrize("memory", [1 * GIB, 30 * GIB, 36 * GIB, 64 * GIB, 2000 * GIB])
@pytest.mark.parametrize("model", ["kimi-linear-48b", "glm-4.7-flash"])
def test_the_picture_is_sound_and_stays_inside(configs: Path, memory: int, model: str) -> None:
    plan_at, most = planner(configs, memory, model)
    svg = picture("a <model> & more", plan_at(8192, 1), curves(plan_at, most, (1, 4, 16)))
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "a <model> & more"
    for line in root.iter(f"{space}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 960
            assert 0 <= y <= 560
    for text in root.iter(f"{space}text"):
        assert 0 <= float(text.get("y")) <= 560
    assert any("as given" in (text.text or "") for text in root.iter(f"{space}text"))
