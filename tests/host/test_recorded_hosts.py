"""What the doctor says of each host in fixtures/: those observed, and those composed for want of an observation."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import FIXTURES, Memory, check, load, write_tree

from perilune.host.doctor import RULES, diagnose
from perilune.host.rule import Status, Target
from perilune.host.sources import SOURCES
from perilune.host.sysroot import Recorded, Sysroot

PASS, WARN, FAIL, UNKNOWN, INFO, SKIP = (
    Status.PASS, Status.WARN, Status.FAIL, Status.UNKNOWN, Status.INFO, Status.SKIP,
)  # fmt: skip
S, X, M = Target.STRIX_HALO, Target.MI300X, Target.MI355X

VERDICTS: dict[str, tuple[Target, dict[str, Status]]] = {
    "observed/2.1-aurora": (S, {"gpu.kfd_nodes": PASS, "gpu.model": PASS, "mem.vram": PASS, "mem.ttm": UNKNOWN}),
    "observed/2.2-nixos-96": (
        S,
        {"sys.kernel": PASS, "mem.vram": PASS, "mem.ttm_live": PASS, "mem.ttm_units": PASS, "mem.pool_size": INFO,
         "boot.iommu": INFO, "mem.class": UNKNOWN},
    ),
    "observed/2.3-fedora-110": (S, {"mem.vram": PASS, "mem.kfd_heap": PASS}),
    "observed/2.4-kyuz0-124": (
        S,
        {"sys.kernel": PASS, "mem.ttm": WARN, "mem.gttsize": WARN, "mem.pool_size": INFO, "mem.kfd_heap": PASS,
         "mem.class": PASS, "mem.hip_total": FAIL, "drv.dmesg": PASS},
    ),
    "observed/2.5-cap15": (S, {"mem.class": FAIL, "sys.kernel": FAIL, "mem.vram": WARN, "mem.ttm": WARN}),
    "observed/2.6-fwreserved": (S, {"mem.class": WARN, "mem.vram": WARN, "mem.kfd_heap": PASS}),
    "reconstructed/2.7-cap31": (
        S,
        {"mem.class": FAIL, "mem.gttsize": FAIL, "mem.gtt": WARN, "env.xnack": WARN, "drv.dmesg": WARN,
         "sys.kernel": FAIL, "boot.iommu": INFO},
    ),
    "observed/2.8-cap62": (S, {"mem.class": WARN, "mem.ttm": WARN, "mem.gtt": WARN, "sys.kernel": PASS}),
    "observed/2.9-wrong-module": (
        S, {"mem.ttm_module": FAIL, "mem.gttsize": FAIL, "sys.kernel": FAIL, "mem.ttm_live": PASS}),
    "observed/2.9-typo": (S, {"mem.gttsize": WARN, "sys.kernel": FAIL, "drv.dmesg": WARN}),
    "observed/2.11-mi300x": (
        X, {"gpu.kfd_nodes": PASS, "gpu.model": PASS, "fw.mec": PASS, "gpu.count": WARN, "fw.uniform": SKIP}),
    "observed/2.12-mi350x": (M, {"gpu.model": PASS, "fw.mec": PASS, "fw.uniform": PASS, "gpu.count": WARN}),
    "observed/2.18-amd-smi-static": (M, {"drv.dkms": PASS, "gpu.kfd_nodes": FAIL}),
    "observed/2.19-partitions": (X, {"gpu.partition": PASS}),
    "reconstructed/2.20-cmdline-instinct": (X, {"boot.iommu": PASS, "boot.realloc": PASS}),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name: str) -> None:
    target, wanted = VERDICTS[name]
    bundle = load(name)
    assert {id: check(bundle, id, target).status for id in wanted} == wanted


@pytest.mark.parametrize(("name", "found"), [
    ("observed/2.5-cap15", "cap15"), ("observed/2.6-fwreserved", "fwreserved"), ("reconstructed/2.7-cap31", "cap31"),
    ("observed/2.8-cap62", "cap62"), ("observed/2.4-kyuz0-124", "unified"), ("reconstructed/strix-good", "unified"),
])  # fmt: skip
def test_classes(name: str, found: str) -> None:
    assert check(load(name), "mem.class").value == found


@pytest.mark.parametrize(("name", "target"), [("strix-good", S), ("mi355x-good", M)])
def test_a_good_host_has_nothing_to_change(name: str, target: Target) -> None:
    report = diagnose(Sysroot(Memory(load(f"reconstructed/{name}"))))
    assert report.target is target
    assert {check.id: check.says for check in report.checks if check.status in (FAIL, WARN, UNKNOWN)} == {}
    assert (report.verdict, report.exit_status) == (PASS, 0)


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.txt")), ids=lambda path: path.stem)
def test_every_fixture_says_whether_it_was_observed(path: Path) -> None:
    first = path.read_text().split(":")[0].split(" ")[0]
    assert first == {"observed": "Observed", "reconstructed": "RECONSTRUCTED"}[path.parent.name]


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.txt")), ids=lambda path: path.stem)
def test_a_tree_of_files_gives_the_verdicts_of_the_text(path: Path, tmp_path: Path) -> None:
    bundle = load(str(path.relative_to(FIXTURES).with_suffix("")))
    tree = Sysroot(Recorded(write_tree(bundle, tmp_path)))
    for target in Target:
        assert diagnose(tree, target).checks == diagnose(Sysroot(Memory(bundle)), target).checks


def test_checks_come_worst_first() -> None:
    order = [FAIL, WARN, UNKNOWN, INFO, PASS, SKIP]
    found = [order.index(check.status) for check in diagnose(Sysroot(Memory(load("reconstructed/2.7-cap31")))).checks]
    assert found == sorted(found)


def test_rules_are_whole() -> None:
    for target in Target:
        ids = [rule.id for rule in RULES if target in rule.targets]
        assert len(ids) == len(set(ids)), target
    for rule in RULES:
        assert rule.why.endswith("."), rule.id
        assert set(rule.sources) <= set(SOURCES), rule.id


IDS = """
gpu.kfd_nodes gpu.model gpu.count gpu.partition gpu.clean mem.vram mem.gtt mem.ttm mem.ttm_live mem.ttm_module
mem.ttm_units mem.gttsize mem.pool_size mem.kfd_heap mem.class mem.hip_total mem.reserve mem.uma_sysfs mem.smi_lies
sys.kernel sys.bios sys.rocm_kernel sys.rocm fw.mes fw.pkg fw.file fw.mec fw.uniform drv.dmesg drv.params drv.dkms
drv.npu boot.iommu boot.realloc os.numa_balancing os.numa_nodes os.thp os.hugepages os.ulimits os.power os.selinux
os.apparmor_userns dev.kfd dev.dri ctr.groups ctr.flags ctr.shm ctr.cache env.gfx_override env.xnack env.alloc_conf
env.visible env.stale env.transformers
"""


def test_every_rule_that_is_known_is_there() -> None:
    assert set(IDS.split()) <= {rule.id for rule in RULES}
