"""Firmware versions out of every text that has been seen, and what follows from each."""

from __future__ import annotations

import pytest
from bundles import check, load
from hypothesis import given
from hypothesis import strategies as st

from perilune.host.firmware import (
    amd_smi_versions,
    mes_is_good,
    no_scratch_reclaim,
    parse_mec,
    parse_mes,
    rocm_smi_versions,
    rocminfo_versions,
)
from perilune.host.rule import Status, Target


@pytest.mark.parametrize(
    ("text", "flag"),
    [("", True), ("176", True), ("177", False), ("unknown", True), ("v177", True), ("N/A", True), ("177b", True),
     ("08", True)],
)  # fmt: skip
def test_the_scratch_flag_is_set_unless_the_version_is_known_to_be_new(text: str, flag: bool) -> None:
    assert no_scratch_reclaim("gfx942", parse_mec(text)) is flag


@pytest.mark.parametrize(
    ("text", "version"),
    [("177", 177), (" 177\n", 177), ("0x000000b1", 177), ("32945", 177), ("0x00000022", 34), ("192", 192),
     ("0", None), ("0x0", None), ("-1", None), ("1e3", None), ("1_77", None), ("٣", None), ("177 ", 177),
     ("2048", None)],
)  # fmt: skip
def test_mec_versions_lose_what_they_were_built_for(text: str, version: int | None) -> None:
    assert parse_mec(text) == version


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    for gfx in ("gfx942", "gfx950"):
        assert isinstance(no_scratch_reclaim(gfx, parse_mec(text)), bool)
    parse_mes(text)
    rocm_smi_versions(text, "MEC")
    amd_smi_versions(text, "CP_MEC1")
    rocminfo_versions(text, "gfx942")


@pytest.mark.parametrize(("gfx", "floor"), [("gfx942", 177), ("gfx950", 24)])
def test_each_chip_has_its_own_threshold(gfx: str, floor: int) -> None:
    assert [no_scratch_reclaim(gfx, version) for version in (floor - 1, floor, floor + 1, None)] == [
        True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "good"),
    [("0x00000083", False), ("0x74", True), ("0x7c", True), ("0x80", True), ("0x84", True), ("0x88", True),
     ("0x82", None), ("0x6e", None), ("0x1083", False), ("131", False)],
)  # fmt: skip
def test_mes_versions(text: str, good: bool | None) -> None:
    version = parse_mes(text)
    assert version is not None
    assert mes_is_good(version) is good


def text_of(name: str, command: str) -> str:
    text = load(name)["command", command]
    assert isinstance(text, str)
    return text


def test_rocm_smi_mec_is_not_mec2_and_an_unsupported_line_is_no_version() -> None:
    text = text_of("observed/2.16-rocm-smi-instinct", "rocm-smi-showfw")
    assert rocm_smi_versions(text, "MEC") == {0: "138"}
    assert rocm_smi_versions(text, "MES") == {}
    assert rocm_smi_versions("GPU[0]\t\t: get_firmware_version_MEC, Not supported on the given system\n", "MEC") == {}
    assert rocm_smi_versions("GPU[3]\t\t: MEC firmware version: \tN/A\n", "MEC") == {3: "N/A"}
    assert rocm_smi_versions("GPU[3]\t\t: MEC firmware version: \t\n", "MEC") == {3: ""}


def test_rocm_smi_json_mes_is_not_mes_kiq() -> None:
    text = text_of("observed/2.10-rocm-smi-apu", "rocm-smi-showfw")
    assert rocm_smi_versions(text, "MES") == {0: "0x0000006e"}
    assert rocm_smi_versions(text, "MEC") == {0: "40"}


def test_amd_smi_in_both_wrappings() -> None:
    text = text_of("observed/2.17-amd-smi", "amd-smi-firmware")
    assert {gpu: parse_mec(version) for gpu, version in amd_smi_versions(text, "CP_MEC1").items()} == {0: 177}


def test_rocminfo_gives_the_agent_asked_for() -> None:
    assert rocminfo_versions(text_of("observed/2.13-rocminfo-mi300x", "rocminfo"), "gfx942") == {0: "166"}
    assert rocminfo_versions(text_of("observed/2.14-rocminfo-mi355x", "rocminfo"), "gfx950") == {0: "38"}


# One MI300X whose KFD properties name no firmware: what each tool's output leads to.
def one_gpu(command: str, text: str | None) -> Status:
    bundle = load("observed/2.11-mi300x")
    key = ("file", "/sys/class/kfd/kfd/topology/nodes/1/properties")
    bundle[key] = "".join(line for line in str(bundle[key]).splitlines(True) if "fw_version" not in line)
    if text is not None:
        bundle["command", command] = text
    return check(bundle, "fw.mec", Target.MI300X).status


@pytest.mark.parametrize(
    ("command", "text", "status"),
    [
        ("rocm-smi-showfw", "GPU[0]\t\t: MEC firmware version: \t177\n", Status.PASS),
        ("rocm-smi-showfw", "GPU[0]\t\t: MEC firmware version: \t176\n", Status.WARN),
        ("rocm-smi-showfw", "GPU[0]\t\t: MEC firmware version: \tN/A\n", Status.WARN),
        ("rocm-smi-showfw", "GPU[0]\t\t: MEC firmware version: \t\n", Status.WARN),
        ("rocm-smi-showfw", "GPU[0]\t\t: get_firmware_version_MEC, Not supported on the given system\n", Status.WARN),
        ("rocm-smi-showfw", "GPU[0]\t\t: MEC2 firmware version: \t192\n", Status.WARN),
        ("amd-smi-firmware", '{"gpu_data": [{"gpu": 0, "fw_list": [{"fw_id": "CP_MEC1", "fw_version": "177"}]}]}',
         Status.PASS),
        ("amd-smi-firmware", '[{"gpu": 0, "fw_list": [{"fw_id": "CP_MEC1", "fw_version": "N/A"}]}]', Status.WARN),
        ("amd-smi-firmware", "[]", Status.WARN),
        ("amd-smi-firmware", "{", Status.WARN),
        ("rocminfo", "  Name:   gfx942\n  Packet Processor uCode:: 192\n", Status.PASS),
        ("rocminfo", None, Status.WARN),
    ],
)  # fmt: skip
def test_an_unreadable_mec_warns_and_sets_the_flag(command: str, text: str | None, status: Status) -> None:
    assert one_gpu(command, text) is status


def test_the_fix_of_an_unreadable_mec_is_the_flag() -> None:
    bundle = load("observed/2.11-mi300x")
    key = ("file", "/sys/class/kfd/kfd/topology/nodes/1/properties")
    bundle[key] = str(bundle[key]).replace("fw_version 192", "fw_version N/A")
    found = check(bundle, "fw.mec", Target.MI300X)
    assert found.value is None
    assert "HSA_NO_SCRATCH_RECLAIM=1" in str(found.fixes)
