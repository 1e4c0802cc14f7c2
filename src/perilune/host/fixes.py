"""What to change, as data: the text per family of distributions here, the script from the same data in `script.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perilune.host.distro import Family


class Reboot(StrEnum):
    NONE = "none"
    REBOOT = "reboot"
    INITRAMFS = "initramfs and reboot"


@dataclass(frozen=True)
class KernelOptions:
    """Options of the kernel's command line: `add` as (name, value), names to `drop`."""

    add: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    reboot: Reboot = field(default=Reboot.REBOOT, init=False)

    def text(self, family: Family) -> str:
        add, drop = " ".join(f"{name}={value}" for name, value in self.add), " ".join(self.drop)
        if family is Family.FEDORA:
            words = [f'--remove-args="{drop}"'] * bool(drop) + [f'--args="{add}"'] * bool(add)
            return f"sudo grubby --update-kernel=ALL {' '.join(words)}"
        edit = "; ".join([f"remove {drop}"] * bool(drop) + [f"add {add}"] * bool(add))
        if family is Family.DEBIAN:
            return f"in GRUB_CMDLINE_LINUX_DEFAULT of /etc/default/grub {edit}; then sudo update-grub"
        return (
            f"{edit}: with GRUB in /etc/default/grub, then sudo grub-mkconfig -o /boot/grub/grub.cfg; with "
            "systemd-boot in the options line of /boot/loader/entries/*.conf or in /etc/kernel/cmdline; with limine in "
            "its config"
        )


_INITRAMFS = {
    Family.DEBIAN: "sudo update-initramfs -u -k all",
    Family.FEDORA: "sudo dracut -f --regenerate-all",
    Family.ARCH: "sudo mkinitcpio -P",
}


@dataclass(frozen=True)
class ModuleOption:
    """One option of a kernel module, in a file of /etc/modprobe.d that goes into the initramfs."""

    module: str
    name: str
    value: str
    reboot: Reboot = field(default=Reboot.INITRAMFS, init=False)

    @property
    def file(self) -> str:
        return f"/etc/modprobe.d/{self.module}.conf"

    @property
    def line(self) -> str:
        return f"options {self.module} {self.name}={self.value}"

    def text(self, family: Family) -> str:
        return f"write `{self.line}` to {self.file}; then {_INITRAMFS[family]}"


@dataclass(frozen=True)
class RebuildInitramfs:
    """Nothing but the rebuild: what is configured never reached the running kernel."""

    reboot: Reboot = field(default=Reboot.INITRAMFS, init=False)

    def text(self, family: Family) -> str:
        return _INITRAMFS[family]


@dataclass(frozen=True)
class Firmware:
    """The distribution's newest firmware for AMD GPUs, into the initramfs."""

    reboot: Reboot = field(default=Reboot.INITRAMFS, init=False)

    def text(self, family: Family) -> str:
        return {
            Family.DEBIAN: "sudo apt update && sudo apt install --only-upgrade linux-firmware "
            "(Ubuntu 26.04: linux-firmware-amd-graphics, Debian: firmware-amd-graphics); "
            "then sudo update-initramfs -u -k all",
            Family.FEDORA: "sudo dnf upgrade linux-firmware amd-gpu-firmware && sudo dracut -f --regenerate-all",
            Family.ARCH: "sudo pacman -Syu linux-firmware-amdgpu && sudo mkinitcpio -P",
        }[family]


@dataclass(frozen=True)
class NewKernel:
    """A kernel with both KFD fixes. Which package has it is the user's choice, so no script installs one."""

    reboot: Reboot = field(default=Reboot.REBOOT, init=False)

    def text(self, family: Family) -> str:
        return {
            Family.DEBIAN: "Ubuntu 24.04: sudo apt install linux-generic-hwe-24.04 (6.17.0-19.19~24.04.2 or later), or "
            "move to 26.04; Debian: a kernel 6.18.4 or later from backports",
            Family.FEDORA: "sudo dnf upgrade kernel",
            Family.ARCH: "sudo pacman -Syu linux",
        }[family]


@dataclass(frozen=True)
class Sysctl:
    """One kernel setting, now and at every start."""

    name: str
    value: str
    reboot: Reboot = field(default=Reboot.NONE, init=False)

    def text(self, family: Family) -> str:
        return f"sudo sysctl -w {self.name}={self.value}; to keep it, the same in /etc/sysctl.d/90-perilune.conf"


@dataclass(frozen=True)
class JoinGroups:
    """The user into the groups that own the GPU's device nodes."""

    reboot: Reboot = field(default=Reboot.NONE, init=False)

    def text(self, family: Family) -> str:
        return 'sudo usermod -aG render,video "$USER", then a new login (at once, for a test: sg render -c COMMAND)'


@dataclass(frozen=True)
class ByHand:
    """What no script can do well: the BIOS, an environment, a container's options. One text, or one per family."""

    how: str | Mapping[Family, str]
    reboot: Reboot = Reboot.NONE

    def text(self, family: Family) -> str:
        return self.how if isinstance(self.how, str) else self.how[family]


Fix = KernelOptions | ModuleOption | RebuildInitramfs | Firmware | NewKernel | Sysctl | JoinGroups | ByHand
_ORDER = (Reboot.NONE, Reboot.REBOOT, Reboot.INITRAMFS)


def strongest(fixes: tuple[Fix, ...]) -> Reboot:
    """What has to follow all of them together."""
    return max((fix.reboot for fix in fixes), key=_ORDER.index, default=Reboot.NONE)
