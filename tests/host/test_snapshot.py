"""A snapshot has exactly what the rules read, names nobody, and gives the same verdicts."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from bundles import FIXTURES, Bundle, Memory, Problem, changed, load
from hypothesis import given
from hypothesis import strategies as st

from perilune.errors import ConfigError
from perilune.host.doctor import diagnose
from perilune.host.rule import Target
from perilune.host.scrub import VARIABLES, scrub
from perilune.host.snapshot import opened, record
from perilune.host.sysroot import Recorded, Sysroot

PRIVATE = {
    "name": "alice", "host": "gpu-box-17", "mac": "a4:bb:6d:0f:1e:2d", "v4": "10.20.30.40",
    "v6": "fe80:1234:5678:9abc:def0:1111:2222:3333", "uuid": "0f3c2a4e-1111-4222-8333-944445555666",
    "serial": "FRANDACP0012345678", "unique": "8234567890123456789", "token": "hf_abcdefghijklmnop",
}  # fmt: skip
P = PRIVATE
NODES = "/sys/class/kfd/kfd/topology/nodes"


def private_host() -> Bundle:
    """The good host, with what must not leave it in every place where it is known to stand."""
    good = load("reconstructed/strix-good")
    inspect = [
        {
            "Name": f"/{P['name']}-vllm",
            "Config": {"Hostname": P["host"], "Env": [f"HF_TOKEN={P['token']}", "HSA_XNACK=1"]},
            "HostConfig": {
                "Devices": [{"PathOnHost": "/dev/kfd"}],
                "GroupAdd": ["105"],
                "Binds": [f"/home/{P['name']}:/x"],
            },
            "NetworkSettings": {"IPAddress": P["v4"], "MacAddress": P["mac"], "GlobalIPv6Address": P["v6"]},
            "Mounts": [{"Source": f"/home/{P['name']}/m", "Destination": f"/home/{P['name']}/.cache"}],
        }
    ]
    properties = str(good["file", f"{NODES}/1/properties"])
    return changed(
        good,
        {
            ("file", f"{NODES}/1/properties"): f"{properties}unique_id {P['unique']}\n",
            ("file", "/proc/cmdline"): f"root=UUID={P['uuid']} ip={P['v4']} hostname={P['host']} iommu=pt {P['name']}",
            ("file", "/proc/self/mounts"): f"{P['host']}:/{P['name']} /home/{P['name']}/.cache nfs addr={P['v4']} 0 0",
            ("file", "/.dockerenv"): "",
            ("file", "/run/.containerenv"): f'name="{P["name"]}"\nid="{P["uuid"]}"\n',
            ("file", "/proc/cpuinfo"): f"model name\t: x\nserial\t\t: {P['serial']}\nflags\t\t: avx2\n",
            ("file", "/etc/modprobe.d/wifi.conf"): f"options wifi mac={P['mac']}\n# by {P['name']}\n",
            ("file", "/etc/os-release"): f'ID=fedora\nPRETTY_NAME="{P["host"]}"\n',
            ("file", "/sys/class/dmi/id/product_serial"): P["serial"],
            ("variable", "TRITON_CACHE_DIR"): f"/home/{P['name']}/.triton",
            ("variable", "HF_TOKEN"): P["token"],
            ("command", "docker-inspect"): json.dumps(inspect),
            ("command", "dmesg"): (
                f"Nov 21 10:00:00 {P['host']} kernel: amdgpu 0000:c6:00.0: amdgpu: 512M of VRAM memory ready\n"
                f"Nov 21 10:00:01 {P['host']} kernel: usb 1-1: SerialNumber: {P['serial']}\n"
                f"Nov 21 10:00:02 {P['host']} kernel: eth0: {P['mac']} {P['v4']}\n"
                f"Nov 21 10:00:03 {P['host']} kernel: amdgpu: [gfxhub] page fault process {P['uuid']}\n"
            ),
            ("command", "rocm-smi-showfw"): f"Serial Number: {P['serial']}\nGPU[0]\t\t: MES firmware version: \t0x80\n",
        },
    )  # fmt: skip


def content(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive if m.isfile()}  # type: ignore[union-attr]


def test_nothing_private_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "host.tar.gz"
    record(Sysroot(Memory(private_host())), file)
    everything = "\n".join(f"{name}\n{text}" for name, text in content(file).items())
    assert {what for what, text in PRIVATE.items() if text in everything} == set()
    with tarfile.open(file) as archive:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in archive} == {(0, 0, "", "", 0)}


def test_a_snapshot_has_what_the_rules_read_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "host.tar.gz"
    root = Sysroot(Memory(private_host()))
    record(root, file)
    found = content(file)
    assert "sys/class/dmi/id/product_serial" not in found
    assert "perilune/variable/HF_TOKEN" not in found
    assert found["proc/cmdline"] == "iommu=pt\n"
    assert found["sys/module/ttm/parameters/pages_limit"] == "29360128\n"
    assert len(found) - 1 == sum(reading.text is not None for reading in root.readings)


def verdicts(root: Sysroot) -> dict[Target, list[object]]:
    return {target: list(diagnose(root, target).checks) for target in Target}


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.txt")), ids=lambda path: path.stem)
def test_a_replay_gives_the_same_verdicts_and_evidence(path: Path, tmp_path: Path) -> None:
    bundle = load(str(path.relative_to(FIXTURES).with_suffix("")))
    replay_equals(bundle, tmp_path)


def test_a_replay_of_an_unreadable_host_gives_the_same_verdicts(tmp_path: Path) -> None:
    good = load("reconstructed/mi355x-good")
    denied = {key: Problem("operation not permitted") for key in sorted(good)[::3]}
    replay_equals(changed(good, denied), tmp_path)
    replay_equals(changed(good, {("file", "/sys/class/drm"): Problem("permission denied")}), tmp_path)
    replay_equals(private_host(), tmp_path)


def replay_equals(bundle: Bundle, folder: Path) -> None:
    root, file = Sysroot(Memory(bundle)), folder / "host.tar.gz"
    record(root, file)
    with opened(file) as replayed:
        again = Sysroot(Recorded(replayed))
        assert verdicts(again) == verdicts(root)
        assert diagnose(again).target is diagnose(root).target
        second = folder / "again.tar.gz"
        record(again, second)
    assert content(second) == content(file), "a snapshot of a snapshot is the same"


KINDS = [
    ("file", name)
    for name in ("/proc/cmdline", "/proc/meminfo", "/proc/self/mounts", "/proc/cpuinfo", "/etc/os-release")
]
KINDS += [("command", name) for name in ("dmesg", "docker-inspect", "amd-smi-firmware", "rocminfo")]
KINDS += [("variable", name) for name in sorted(VARIABLES)[:2]]


@given(st.sampled_from(KINDS), st.text())
def test_scrubbing_twice_is_scrubbing_once(kind: tuple[str, str], text: str) -> None:
    once = scrub(*kind, text)
    assert scrub(*kind, once) == once


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\x1f\x8b broken"])
def test_what_is_no_snapshot_is_said_so(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match="no recorded host"), opened(file):
        pass
    with pytest.raises(ConfigError, match="no recorded host"), opened(tmp_path / "nowhere"):
        pass


def test_a_snapshot_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "evil.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(ConfigError), opened(file):
        pass
    assert not (tmp_path.parent / "escaped").exists()


def test_a_file_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        record(Sysroot(Memory({})), tmp_path / "no" / "such" / "folder.tar.gz")
