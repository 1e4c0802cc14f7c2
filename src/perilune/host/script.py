"""A shell script that makes a report's fixes on one family of distributions: written here, read and run by the user.

It sets what it sets to one value however often it runs, keeps a copy of each file before its first change, and prints
what is left to do by hand. `ROOT` (empty by default) goes before every path that it changes, to try it on a copy.
"""

from __future__ import annotations

import shlex

from perilune.errors import UnsupportedError
from perilune.host.distro import NAMES, Family
from perilune.host.doctor import Report
from perilune.host.fixes import (
    ByHand,
    Firmware,
    Fix,
    JoinGroups,
    KernelOptions,
    ModuleOption,
    NewKernel,
    Reboot,
    RebuildInitramfs,
    Sysctl,
    strongest,
)
from perilune.host.rule import Check, Status

_HEAD = """\
#!/bin/sh
# What `perilune doctor` would change on this host ({family}, target {target}). Read it, then: sudo sh {name}
# Running it again changes nothing more. ROOT=/some/copy makes it change files below that folder instead.
set -eu
ROOT=${{ROOT:-}}

say() {{ printf '%s\\n' "$*"; }}

# keep FILE: a copy of what was there before the first change.
keep() {{
    if [ -e "$1" ] && [ ! -e "$1.before-perilune" ]; then cp -p "$1" "$1.before-perilune"; fi
}}

# run COMMAND...: not when a copy is changed, which has no boot loader of its own.
run() {{
    say "+ $*"
    if [ -z "$ROOT" ]; then "$@"; fi
}}
"""

_EDIT = r"""
# edit FILE LINES NAME [VALUE]: in the lines that begin with LINES, every NAME or NAME=... goes; NAME=VALUE comes last.
edit() {
    file=$1 lines=$2 name=$3 value=${4-}
    if [ ! -e "$file" ]; then return; fi
    if [ -n "$value" ] && ! grep -q "^$lines" "$file"; then say "By hand: $file has no line $lines for $name=$value"; fi
    keep "$file"
    new=$(LINES_="$lines" NAME_="$name" VALUE_="$value" awk '
        substr($0, 1, length(ENVIRON["LINES_"])) == ENVIRON["LINES_"] {
            rest = substr($0, length(ENVIRON["LINES_"]) + 1); quote = ""; tail = ""
            if (match(rest, /^["\047]/)) {
                quote = substr(rest, 1, 1); rest = substr(rest, 2); end = index(rest, quote)
                if (end > 0) { tail = substr(rest, end + 1); rest = substr(rest, 1, end - 1) }
            }
            else if (ENVIRON["LINES_"] ~ /=$/) quote = "\""
            count = split(rest, words, /[ \t]+/); rest = ""
            for (i = 1; i <= count; i++) {
                bare = words[i]; sub(/=.*/, "", bare)
                if (words[i] != "" && bare != ENVIRON["NAME_"]) rest = rest (rest == "" ? "" : " ") words[i]
            }
            if (ENVIRON["VALUE_"] != "") rest = rest (rest == "" ? "" : " ") ENVIRON["NAME_"] "=" ENVIRON["VALUE_"]
            print ENVIRON["LINES_"] quote rest quote tail; next
        }
        { print }' "$file")
    printf '%s\n' "$new" >"$file"
}
"""

_OPTION = {
    Family.DEBIAN: """
# kernel_option NAME [VALUE]
kernel_option() {
    edit "$ROOT/etc/default/grub" 'GRUB_CMDLINE_LINUX=' "$1"
    edit "$ROOT/etc/default/grub" 'GRUB_CMDLINE_LINUX_DEFAULT=' "$@"
    for file in "$ROOT"/etc/default/grub.d/*.cfg; do
        if [ -e "$file" ] && grep -q '^GRUB_CMDLINE' "$file"; then say "By hand: $file comes later, look at it"; fi
    done
}
boot_loader() { run update-grub; }
""",
    Family.FEDORA: """
# kernel_option NAME [VALUE]
kernel_option() {
    run grubby --update-kernel=ALL --remove-args="$1"
    if [ -n "${2-}" ]; then run grubby --update-kernel=ALL --args="$1=$2"; fi
}
boot_loader() { :; }
""",
    Family.ARCH: """
# kernel_option NAME [VALUE]: for GRUB, and for systemd-boot with or without unified images
kernel_option() {
    edit "$ROOT/etc/default/grub" 'GRUB_CMDLINE_LINUX=' "$1"
    edit "$ROOT/etc/default/grub" 'GRUB_CMDLINE_LINUX_DEFAULT=' "$@"
    edit "$ROOT/etc/kernel/cmdline" '' "$@"
    for file in "$ROOT"/boot/loader/entries/*.conf; do edit "$file" 'options ' "$@"; done
}
boot_loader() {
    if [ -e "$ROOT/etc/default/grub" ]; then run grub-mkconfig -o /boot/grub/grub.cfg; fi
    if [ -e "$ROOT/etc/kernel/cmdline" ]; then run mkinitcpio -P; fi
    if [ -e "$ROOT/boot/limine.conf" ]; then say "limine: put the same options into /boot/limine.conf by hand"; fi
}
""",
}

_MODULE = """
# module_option MODULE NAME VALUE: one line of modprobe.d, and none of the same name elsewhere in the same file
module_option() {
    file=$ROOT/etc/modprobe.d/$1.conf
    mkdir -p "$ROOT/etc/modprobe.d"
    keep "$file"
    rest=$(if [ -e "$file" ]; then grep -v "^options $1 $2=" "$file" || :; fi)
    { if [ -n "$rest" ]; then printf '%s\\n' "$rest"; fi; printf 'options %s %s=%s\\n' "$1" "$2" "$3"; } >"$file"
}
"""

_SYSCTL = """
# setting NAME VALUE: now, and at every start
setting() {
    file=$ROOT/etc/sysctl.d/90-perilune.conf
    mkdir -p "$ROOT/etc/sysctl.d"
    rest=$(if [ -e "$file" ]; then grep -v "^$1 = " "$file" || :; fi)
    { if [ -n "$rest" ]; then printf '%s\\n' "$rest"; fi; printf '%s = %s\\n' "$1" "$2"; } >"$file"
    run sysctl -w "$1=$2"
}
"""

_INITRAMFS = {
    Family.DEBIAN: "run update-initramfs -u -k all",
    Family.FEDORA: "run dracut -f --regenerate-all",
    Family.ARCH: "run mkinitcpio -P",
}
_FIRMWARE = {
    Family.DEBIAN: (
        "run apt-get update",
        "for package in linux-firmware linux-firmware-amd-graphics firmware-amd-graphics; do",
        '    if dpkg-query -W "$package" >/dev/null 2>&1; then run apt-get install --only-upgrade "$package"; fi',
        "done",
    ),
    Family.FEDORA: ("run dnf upgrade linux-firmware amd-gpu-firmware",),
    Family.ARCH: ("run pacman -Syu linux-firmware-amdgpu",),
}


def fix_script(report: Report, name: str = "fix.sh") -> str:
    """The script's text. Raises UnsupportedError on a distribution no fix is written for."""
    family = report.family
    if family is None:
        raise UnsupportedError(
            "No script can be written for this distribution.",
            "Fixes are known for Ubuntu/Debian, Fedora/RHEL and Arch, and /etc/os-release names none of them.",
            "Make the changes that `perilune doctor` lists in your distribution's own way.",
        )
    wrong = [check for check in report.checks if check.status in (Status.FAIL, Status.WARN) and check.fixes]
    fixes = tuple(dict.fromkeys(fix for check in wrong for fix in check.fixes))
    parts = [_HEAD.format(family=NAMES[family], target=report.target, name=shlex.quote(name))]
    parts += _functions(family, fixes)
    parts += [_section(check, family, done) for check, done in _once(wrong)]
    parts.append(_ending(family, fixes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _functions(family: Family, fixes: tuple[Fix, ...]) -> list[str]:
    """Only those that are called below."""
    kinds = {type(fix) for fix in fixes}
    parts = []
    if KernelOptions in kinds:
        parts += ([_EDIT] if family is not Family.FEDORA else []) + [_OPTION[family]]
    return parts + [text for kind, text in ((ModuleOption, _MODULE), (Sysctl, _SYSCTL)) if kind in kinds]


def _once(checks: list[Check]) -> list[tuple[Check, set[Fix]]]:
    """Each check with the fixes that an earlier one already made."""
    done: set[Fix] = set()
    pairs = []
    for check in checks:
        pairs.append((check, set(done)))
        done |= set(check.fixes)
    return pairs


def _section(check: Check, family: Family, done: set[Fix]) -> str:
    """One rule's comment and commands."""
    lines = [f"# {check.id}, {check.status}: {check.says}", f"#   why: {check.why}"]
    lines += [f"#   now: {evidence.path}: {evidence.text}" for evidence in check.evidence]
    lines = [_comment(line) for line in lines]
    for fix in check.fixes:
        if fix in done:
            lines.append("# done above")
        else:
            lines += _commands(fix, family)
    return "\n".join(lines)


def _comment(line: str) -> str:
    """One line whatever a file held: nothing of it can leave the comment."""
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _commands(fix: Fix, family: Family) -> list[str]:
    quote = shlex.quote
    match fix:
        case KernelOptions():
            lines = [f"kernel_option {quote(option)}" for option in fix.drop]
            lines += [f"kernel_option {quote(option)} {quote(value)}" for option, value in fix.add]
            return lines
        case ModuleOption():
            return [f"module_option {quote(fix.module)} {quote(fix.name)} {quote(fix.value)}"]
        case Firmware():
            return list(_FIRMWARE[family])
        case Sysctl():
            return [f"setting {quote(fix.name)} {quote(fix.value)}"]
        case JoinGroups():
            return ['if [ -n "${SUDO_USER-}" ]; then run usermod -aG render,video "$SUDO_USER"; fi']
        case RebuildInitramfs():
            return ["# the initramfs is rebuilt below"]
        case NewKernel() | ByHand():
            return [f"say {quote(f'By hand: {_comment(fix.text(family))}')}"]


def _ending(family: Family, fixes: tuple[Fix, ...]) -> str:
    made = tuple(fix for fix in fixes if not isinstance(fix, NewKernel | ByHand))
    lines = ["boot_loader"] if any(isinstance(fix, KernelOptions) for fix in made) else []
    if strongest(made) is Reboot.INITRAMFS:
        lines.append(_INITRAMFS[family])
    if strongest(fixes) is Reboot.NONE:
        lines.append("say 'Done. Look again: perilune doctor'")
    else:
        lines.append("say 'Done. Restart the host, then look again: perilune doctor'")
    return "\n".join(lines)
