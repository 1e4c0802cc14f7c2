"""Which family of distributions a host belongs to, since fixes are written per family."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    DEBIAN = "debian"
    FEDORA = "fedora"
    ARCH = "arch"


NAMES = {Family.DEBIAN: "Ubuntu/Debian", Family.FEDORA: "Fedora/RHEL", Family.ARCH: "Arch"}
_MEMBERS = {
    Family.DEBIAN: {"debian", "ubuntu"},
    Family.FEDORA: {"fedora", "rhel", "centos"},
    Family.ARCH: {"arch"},
}


def family_of(os_release: str) -> Family | None:
    """From the text of /etc/os-release: ID first, then ID_LIKE in its order; None for others, as NixOS or SUSE."""
    fields = {}
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip().strip("\"'").lower()
    for word in (fields.get("ID", ""), *fields.get("ID_LIKE", "").split()):
        for family, members in _MEMBERS.items():
            if word in members:
                return family
    return None
