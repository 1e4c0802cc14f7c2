"""Strix Halo's memory rules: at, below and above each threshold, and what is no number at all."""

from __future__ import annotations

import pytest
from bundles import Bundle, Problem, changed, check, load, without

from perilune.host.rule import Status, Target
from perilune.host.rules.memory import parse_hip_total
from perilune.host.view import Ask
from perilune.units import GIB, MIB

GOOD = load("reconstructed/strix-good")
CARD = "/sys/class/drm/card1/device"
TTM = "/sys/module/ttm/parameters/pages_limit"
MEMORY = 127098456 * 1024
PASS, WARN, FAIL, UNKNOWN, INFO, SKIP = (
    Status.PASS, Status.WARN, Status.FAIL, Status.UNKNOWN, Status.INFO, Status.SKIP,
)  # fmt: skip
NO_NUMBER = ("", "N/A", "0", "-1", "12 GiB", "1e9", "\n\n")


def files(**texts: str | int | Problem) -> Bundle:
    """The good host with other files: vram, gtt, used, limit, cmdline, gttsize, heap, meminfo, modprobe."""
    names = {
        "vram": f"{CARD}/mem_info_vram_total",
        "gtt": f"{CARD}/mem_info_gtt_total",
        "used": f"{CARD}/mem_info_gtt_used",
        "limit": TTM,
        "cmdline": "/proc/cmdline",
        "gttsize": "/sys/module/amdgpu/parameters/gttsize",
        "meminfo": "/proc/meminfo",
        "modprobe": "/etc/modprobe.d/ttm.conf",
        "kernel": "/proc/sys/kernel/osrelease",
        "dkms": "/sys/module/amdttm/parameters/pages_limit",
    }
    made: Bundle = {}
    for name, text in texts.items():
        if name == "heap":
            key = ("file", "/sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties")
            made[key] = text if isinstance(text, Problem) else f"heap_type 1\nsize_in_bytes {text}\n"
        else:
            made["file", names[name]] = text if isinstance(text, Problem) else f"{text}\n"
    return changed(GOOD, made)


def pages(size: float) -> int:
    return int(size) // 4096


@pytest.mark.parametrize(
    ("size", "status"),
    [(512 * MIB, PASS), (8 * GIB, PASS), (8 * GIB + 1, WARN), (64 * GIB - 1, WARN), (64 * GIB, WARN), (96 * GIB, WARN),
     ("0x20000000", PASS), *((text, UNKNOWN) for text in NO_NUMBER), (Problem("permission denied"), UNKNOWN)],
)  # fmt: skip
def test_the_carve_out(size: int | str, status: Status) -> None:
    assert check(files(vram=size), "mem.vram").status is status


def test_a_large_carve_out_is_said_louder() -> None:
    assert "most of the box" not in check(files(vram=64 * GIB - 1), "mem.vram").says
    assert "most of the box" in check(files(vram=64 * GIB), "mem.vram").says


@pytest.mark.parametrize(
    ("gtt", "need", "status"),
    [(90 * GIB, None, PASS), (90 * GIB - 1, None, WARN), (80 * GIB, 80 * GIB, PASS), (80 * GIB, 80 * GIB + 1, FAIL),
     ("N/A", None, UNKNOWN), ("N/A", GIB, UNKNOWN), (Problem("i/o error"), None, UNKNOWN)],
)  # fmt: skip
def test_gtt_against_the_plan_or_a_128_gb_box(gtt: int | str, need: int | None, status: Status) -> None:
    assert check(files(gtt=gtt), "mem.gtt", ask=Ask(need=need)).status is status


def test_a_small_box_is_not_asked_for_90_gib() -> None:
    assert check(files(gtt=40 * GIB, meminfo="MemTotal: 61000000 kB"), "mem.gtt").status is PASS


def test_gtt_beyond_the_page_limit_is_no_pass() -> None:
    assert check(files(gtt=120 * GIB), "mem.gtt").status is WARN


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        (pages(MEMORY * 0.475), WARN),
        (pages(MEMORY * 0.5), WARN),
        (pages(MEMORY * 0.6), WARN),
        (pages(MEMORY * 0.70) - 1, WARN),
        (pages(MEMORY * 0.70) + 1, PASS),
        (pages(MEMORY * 0.95), PASS),
        (pages(MEMORY * 0.95) + 1, WARN),
        (pages(MEMORY) - 1, WARN),
        (pages(MEMORY), FAIL),
        (33554432, FAIL),
        (131072, WARN),
        *((text, UNKNOWN) for text in NO_NUMBER),
        (Problem("permission denied"), UNKNOWN),
    ],
)
def test_the_page_limit(limit: int | str, status: Status) -> None:
    assert check(files(limit=limit), "mem.ttm").status is status


def test_on_a_small_box_six_gib_are_more_than_five_percent() -> None:
    memory = 62 * GIB
    most = memory - 6 * GIB
    for limit, status in ((most, PASS), (most + 4096, WARN)):
        bundle = files(limit=pages(limit), meminfo=f"MemTotal: {memory // 1024} kB")
        assert check(bundle, "mem.ttm").status is status


@pytest.mark.parametrize("meminfo", ["", "MemTotal: N/A", "MemTotal:", "MemTotal: 0 kB", "MemFree: 5 kB"])
def test_without_the_memorys_size_no_limit_is_judged(meminfo: str) -> None:
    assert check(files(meminfo=meminfo), "mem.ttm").status is UNKNOWN


def test_amds_module_governs_where_both_are_loaded() -> None:
    assert check(files(dkms=33554432), "mem.ttm").status is FAIL
    assert check(files(dkms=Problem("permission denied")), "mem.ttm").status is UNKNOWN


def test_the_limit_is_fixed_where_it_is_set_now() -> None:
    default = 16269312
    conf = check(files(limit=default), "mem.ttm").fixes
    line = check(files(limit=default, cmdline="ttm.pages_limit=16269312"), "mem.ttm").fixes
    assert "ModuleOption" in str(conf)
    assert "28835840" in str(conf)
    assert "KernelOptions" in str(line)


def test_with_a_large_carve_out_the_bios_comes_before_any_limit() -> None:
    (fix,) = check(files(limit=16269312, vram=64 * GIB), "mem.ttm").fixes
    assert "BIOS" in str(fix)


@pytest.mark.parametrize(
    ("cmdline", "modprobe", "status"),
    [
        ("quiet", "options ttm pages_limit=29360128", PASS),
        ("quiet", "", PASS),
        ("quiet", "options ttm pages_limit=31457280", WARN),
        ("quiet", "options ttm pages_limit=31457280\noptions ttm pages_limit=29360128", PASS),
        ("quiet", "# options ttm pages_limit=31457280", PASS),
        ("ttm.pages_limit=29360128", "options ttm pages_limit=1", PASS),
        ("ttm.pages_limit=1 ttm.pages_limit=29360128", "", PASS),
        ("ttm.pages_limit=29360128 ttm.pages_limit=1", "", WARN),
        ("ttm.pages-limit=29360128", "", PASS),
        ("ttm.pages_limit=", "", WARN),
        ("ttm.pages_limit", "", WARN),
        ('ttm.pages_limit="29360128"', "", PASS),
        ("ttm.pages_limit=28G", "", WARN),
        ("quiet", Problem("permission denied"), UNKNOWN),
        (Problem("permission denied"), "", UNKNOWN),
    ],
)
def test_what_is_configured_is_in_force(cmdline: str, modprobe: str, status: Status) -> None:
    assert check(files(cmdline=cmdline, modprobe=modprobe), "mem.ttm_live").status is status


@pytest.mark.parametrize(
    ("loaded", "cmdline", "status"),
    [
        ("ttm", "quiet", PASS),
        ("ttm", "ttm.pages_limit=1", PASS),
        ("ttm", "amdttm.pages_limit=1", FAIL),
        ("ttm", "amdttm.page_pool_size=1", FAIL),
        ("ttm", "amdttm.pages_limit=1 ttm.pages_limit=1", PASS),
        ("amdttm", "ttm.pages_limit=1", FAIL),
        ("amdttm", "amdttm.pages_limit=1", PASS),
    ],
)
def test_options_are_those_of_the_loaded_module(loaded: str, cmdline: str, status: Status) -> None:
    bundle = files(cmdline=cmdline, modprobe="")
    if loaded == "amdttm":
        bundle = changed(bundle, {("file", "/sys/module/amdttm/parameters/pages_limit"): "29360128"})
    assert check(bundle, "mem.ttm_module").status is status


def test_no_module_is_no_verdict() -> None:
    bundle = without(GOOD, ("file", TTM))
    for rule in ("mem.ttm", "mem.ttm_live", "mem.ttm_module", "mem.ttm_units", "mem.pool_size", "mem.class"):
        assert check(bundle, rule).status is UNKNOWN, rule


@pytest.mark.parametrize(
    ("cmdline", "status"),
    [
        ("quiet", SKIP),
        (f"ttm.pages_limit={8 * 262144}", PASS),
        (f"ttm.pages_limit={8 * 262144 - 1}", WARN),
        ("ttm.pages_limit=110000", WARN),
        ("ttm.pages_limit=27648000", PASS),
        ("ttm.pages_limit=N/A", WARN),
        ("ttm.pages_limit=0x1c00000", PASS),
    ],
)
def test_units_of_the_page_limit(cmdline: str, status: Status) -> None:
    assert check(files(cmdline=cmdline), "mem.ttm_units").status is status


def test_pages_are_shown_in_gib() -> None:
    assert "105.47 GiB" in check(files(cmdline="ttm.pages_limit=27648000"), "mem.ttm_units").says


LIMIT_MIB = 29360128 * 4096 // MIB


@pytest.mark.parametrize(
    ("cmdline", "live", "kernel", "status"),
    [
        ("quiet", -1, "7.0.0", PASS),
        ("quiet", "N/A", "7.0.0", UNKNOWN),
        ("quiet", LIMIT_MIB, "7.0.0", WARN),
        (f"amdgpu.gttsize={LIMIT_MIB}", LIMIT_MIB, "7.0.0", WARN),
        (f"amdgpu.gttsize={LIMIT_MIB}", LIMIT_MIB, "6.15.9", PASS),
        (f"amdgpu.gttsize={LIMIT_MIB}", LIMIT_MIB, "6.16.0", WARN),
        (f"amdgpu.gttsize={LIMIT_MIB * 101 // 100}", -1, "7.0.0", WARN),
        (f"amdgpu.gttsize={LIMIT_MIB * 101 // 100 + 1}", -1, "7.0.0", FAIL),
        (f"amdgpu.gttsize={LIMIT_MIB // 2}", -1, "6.8.0", WARN),
        ("amdgpu.gttsize=131072", 131072, "6.8.0", FAIL),
        (f"amdgpu.gttsize=131072 amdgpu.gttsize={LIMIT_MIB}", -1, "7.0.0", WARN),
        ("amdgpu.gttsize=", -1, "7.0.0", WARN),
        ("amdgpu.gttsize=112G", -1, "7.0.0", WARN),
        ("amdgpu.gtt_size=122880", -1, "7.0.0", WARN),
    ],
)
def test_gttsize(cmdline: str, live: int | str, kernel: str, status: Status) -> None:
    assert check(files(cmdline=cmdline, gttsize=live, kernel=kernel), "mem.gttsize").status is status


@pytest.mark.parametrize(
    ("cmdline", "status"),
    [("quiet", PASS), ("ttm.page_pool_size=29360128", INFO), ("ttm.page_pool_size=1", INFO),
     ("ttm.page_pool_size=all", WARN)],
)  # fmt: skip
def test_the_pool(cmdline: str, status: Status) -> None:
    assert check(files(cmdline=cmdline), "mem.pool_size").status is status


@pytest.mark.parametrize(
    ("heap", "status"),
    [(112 * GIB, PASS), (int(112 * GIB * 0.981), PASS), (int(112 * GIB * 0.979), FAIL), (int(112 * GIB * 1.021), FAIL),
     ("N/A", UNKNOWN), (0, UNKNOWN), (Problem("operation not permitted"), UNKNOWN)],
)  # fmt: skip
def test_kfds_heap_within_two_percent(heap: int | str, status: Status) -> None:
    assert check(files(heap=heap), "mem.kfd_heap").status is status


def test_a_bank_of_system_memory_is_not_the_gpus() -> None:
    key = ("file", "/sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties")
    bundle = changed(GOOD, {key: "heap_type 0\nsize_in_bytes 120259084288\n"})
    assert check(bundle, "mem.kfd_heap").status is UNKNOWN


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, PASS),
        ({"heap": 60 * GIB}, WARN),
        ({"heap": 80 * GIB}, UNKNOWN),
        ({"limit": 33554432}, FAIL),
        ({"vram": 96 * GIB, "heap": 96 * GIB, "gtt": 60 * GIB}, WARN),
        ({"vram": 96 * GIB, "heap": 60 * GIB, "gtt": 60 * GIB}, FAIL),
        ({"vram": 64 * GIB, "heap": 60 * GIB, "gtt": 60 * GIB}, FAIL),
        ({"vram": "N/A"}, UNKNOWN),
        ({"gtt": "N/A"}, UNKNOWN),
        ({"limit": "N/A"}, UNKNOWN),
        ({"meminfo": "N/A"}, UNKNOWN),
        ({"heap": "N/A"}, UNKNOWN),
    ],
)
def test_the_class_has_a_verdict(changes: dict[str, int | str], status: Status) -> None:
    assert check(files(**changes), "mem.class").status is status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (f"(1000000, {112 * GIB})", PASS),
        (f"{112 * GIB}", PASS),
        ("114688 MiB", PASS),
        (f"({GIB}, {int(112 * GIB * 0.97)})", WARN),
        (f"({GIB}, {MEMORY // 2})", FAIL),
        ("RuntimeError: No HIP GPUs are available", UNKNOWN),
        ("", UNKNOWN),
        ("7", UNKNOWN),
    ],
)
def test_what_hip_sees(text: str, status: Status) -> None:
    assert check(changed(GOOD, {("command", "hip-total"): text}), "mem.hip_total").status is status


def test_what_hip_sees_is_not_judged_unasked() -> None:
    assert check(GOOD, "mem.hip_total").status is SKIP


@pytest.mark.parametrize(
    ("text", "size"),
    [("(67108864000, 65947041792)\n", 65947041792), ("Total VRAM: 98304 MiB", 96 * GIB), ("64077MiB", 64077 * MIB),
     ("1.5 MiB", None), ("N/A", None), ("(,)", None)],
)  # fmt: skip
def test_totals_as_they_are_printed(text: str, size: int | None) -> None:
    assert parse_hip_total(text) == size


@pytest.mark.parametrize(
    ("available", "swap", "need", "status"),
    [(4 * 1048576, 0, None, PASS), (4 * 1048576 - 1, 0, None, WARN), (64 * 1048576, 0, 60 * GIB, PASS),
     (64 * 1048576, 0, 60 * GIB + 1, WARN), (64 * 1048576, 8, None, INFO), ("N/A", 0, None, UNKNOWN)],
)  # fmt: skip
def test_memory_left_for_the_system(available: int | str, swap: int, need: int | None, status: Status) -> None:
    meminfo = f"MemAvailable: {available} kB\nSwapTotal: {swap} kB"
    for target in Target:
        assert check(files(meminfo=meminfo), "mem.reserve", target, Ask(need=need)).status is status


def test_the_carve_out_can_be_chosen_from_linux_7_0() -> None:
    assert check(GOOD, "mem.uma_sysfs").status is SKIP
    uma = {
        ("file", f"{CARD}/uma/carveout_options"): "0: Minimum (512 MB)\n1: (1 GB)\n",
        ("file", f"{CARD}/uma/carveout"): "1",
    }
    found = check(changed(GOOD, uma), "mem.uma_sysfs")
    assert found.status is INFO
    assert "Minimum (512 MB)" in found.says


def test_amd_smi_is_said_to_lie() -> None:
    assert check(GOOD, "mem.smi_lies").status is INFO


def test_the_card_is_found_by_address_and_not_by_number() -> None:
    bundle = changed(GOOD, {("file", "/sys/class/drm/card0/device/uevent"): "PCI_SLOT_NAME=0000:01:00.0\n",
                            ("file", "/sys/class/drm/card0/device/mem_info_vram_total"): f"{96 * GIB}\n"})  # fmt: skip
    assert check(bundle, "mem.vram").value == 2 * GIB


def test_two_cards_that_could_be_it_are_none() -> None:
    bundle = without(GOOD, ("file", f"{CARD}/uevent"))
    assert check(bundle, "mem.vram").status is PASS
    twin = {
        ("file", f"/sys/class/drm/card0/device/{name}"): text
        for name, text in (("vendor", "0x1002"), ("device", "0x1586"))
    }
    assert check(changed(bundle, twin), "mem.vram").status is UNKNOWN
