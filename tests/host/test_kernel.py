"""Kernel releases as `uname -r` prints them, against what ROCm needs on gfx1151."""

from __future__ import annotations

import pytest
from bundles import Bundle, check, load
from hypothesis import given
from hypothesis import strategies as st

from perilune.host.kernel import Kernel, upload_is_fixed
from perilune.host.rule import Status

GOOD = load("reconstructed/strix-good")


def on(release: str, **commands: str) -> Bundle:
    given = {("command", name.replace("_", "-")): text for name, text in commands.items()}
    return {**GOOD, ("file", "/proc/sys/kernel/osrelease"): f"{release}\n", **given}


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.16.8-200.fc42.x86_64", Status.FAIL),
        ("6.16.9-200.fc42.x86_64", Status.WARN),
        ("6.16", Status.FAIL),
        ("6.17", Status.WARN),
        ("6.18.3-arch1-1", Status.WARN),
        ("6.18.4-arch1-1", Status.PASS),
        ("6.18.9-200.fc43.x86_64", Status.PASS),
        ("6.19.0-rc3", Status.WARN),
        ("6.19-rc3", Status.WARN),
        ("6.19.8-cachyos", Status.PASS),
        ("7.0.0-15-generic", Status.PASS),
        ("7.0.0-rc1", Status.PASS),
        ("7.1.0", Status.PASS),
        ("10.0.1", Status.PASS),
        ("6.12.48+deb13-amd64", Status.FAIL),
        ("6.14.0-1017-oem", Status.FAIL),
        ("6.14.0-1018-oem", Status.PASS),
        ("6.14.0-1018-generic", Status.FAIL),
        ("6.11.0-1018-oem", Status.FAIL),
        ("6.17.0-18-generic", Status.WARN),
        ("6.17.0-20-generic", Status.PASS),
        ("6.17.0-19-generic", Status.UNKNOWN),  # which upload it is, the name does not say
        ("6.17.0-1019-oem", Status.WARN),
        ("", Status.UNKNOWN),
        ("N/A", Status.UNKNOWN),
        ("six", Status.UNKNOWN),
    ],
)
def test_releases(release: str, status: Status) -> None:
    assert check(on(release), "sys.kernel").status is status


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("linux-image-6.17.0-19-generic 6.17.0-19.19~24.04.2", Status.PASS),
        ("linux-image-6.17.0-19-generic 6.17.0-19.19~24.04.1", Status.WARN),
        ("linux-image-6.17.0-19-generic 6.17.0-19.18~24.04.2", Status.WARN),
        ("linux-image-6.17.0-19-generic 6.17.0-19.20~24.04.1", Status.PASS),
        ("linux-image-6.17.0-19-generic 6.17.0-19.19", Status.PASS),
        ("linux-image-6.17.0-19-generic ", Status.UNKNOWN),
    ],
)
def test_ubuntus_upload_of_one_abi_is_told_by_the_package(version: str, status: Status) -> None:
    assert check(on("6.17.0-19-generic", dpkg_kernel=version), "sys.kernel").status is status


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    Kernel.parse(text)
    upload_is_fixed(text)


@pytest.mark.parametrize(
    ("rocm", "kernel", "status"),
    [
        ("7.2.0", "6.18.4", Status.PASS),
        ("7.2.0", "6.18.3", Status.FAIL),
        ("7.2.1", "6.16.9", Status.PASS),
        ("7.2.4", "6.18.4", Status.PASS),
        ("7.1.1-38", "6.18.4", Status.FAIL),
        ("7.1.1", "6.14.0", Status.WARN),
        ("6.4.1-83", "6.18.4", Status.FAIL),
        ("7.9.0", "6.18.4", Status.FAIL),
        ("7.10.0", "7.0.0", Status.FAIL),
        ("7.11.0", "6.18.4", Status.PASS),
        ("7.12.0", "6.18.4", Status.PASS),
        ("7.13.0", "6.18.4", Status.WARN),
        ("7.14.0", "6.18.4", Status.PASS),
        ("10.2.0", "7.0.0", Status.PASS),
        ("7.0.2", "6.18.4", Status.WARN),
        ("N/A", "6.18.4", Status.UNKNOWN),
        ("7.2.0", "N/A", Status.UNKNOWN),
    ],
)
def test_rocm_and_kernel_in_pairs(rocm: str, kernel: str, status: Status) -> None:
    bundle = {**on(kernel), ("file", "/opt/rocm/.info/version"): f"{rocm}\n"}
    assert check(bundle, "sys.rocm_kernel").status is status
