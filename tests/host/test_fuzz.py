"""Mangled hosts: no rule raises, and none passes on what could not be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from bundles import Bundle, Memory, Problem, changed, check, load, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.host.doctor import RULES, diagnose, examine
from perilune.host.report import render, to_json
from perilune.host.rule import Evidence, Status, Target
from perilune.host.scrub import VARIABLES
from perilune.host.sysroot import Recorded, Sysroot
from perilune.host.view import Ask, Host

HOSTS = {Target.STRIX_HALO: load("reconstructed/strix-good"), Target.MI355X: load("reconstructed/mi355x-good")}
COMMANDS = (
    "docker-inspect",
    "hip-total",
    "rocm-smi-showfw",
    "amd-smi-firmware",
    "rocminfo",
    "dpkg-firmware",
    "dpkg-kernel",
)
SOFT = (Status.PASS, Status.INFO, Status.SKIP)


def look_all(bundle: Bundle, target: Target) -> None:
    """Runs every rule without the guard that would hide an error inside one."""
    root = Sysroot(Memory(bundle))
    for rule in RULES:
        if target in rule.targets:
            found = examine(rule, root, target, Ask(need=1 << 36))
            assert "the rule itself failed" not in found.says, (rule.id, found.says)


NASTY = st.sampled_from(
    ["", "\n", "N/A", "-1", "0", "0x", "0xffffffffffffffff", "9" * 30, "nan", "1 GiB", "unlimited", "\0\0", "a\0b",
     "\ud800".encode("utf-8", "replace").decode(), "{", "[]", "[null]", "null", "[[[[", "simd_count", "simd_count -1",
     "gfx_target_version 110501\nsimd_count 80", "options ttm pages_limit", "ttm.pages_limit='", "heap_type 1",
     "Max open files", "MemTotal: kB", "#", "٣", "² kB", "crw-rw---- gid x rw"]
)  # fmt: skip
TEXTS = NASTY | st.text(max_size=60)


@pytest.mark.parametrize("target", HOSTS)
@settings(max_examples=80)
@given(data=st.data())
def test_no_text_makes_a_rule_raise(target: Target, data: st.DataObject) -> None:
    good = HOSTS[target]
    keys = [*good, *(("command", name) for name in COMMANDS), *(("variable", name) for name in sorted(VARIABLES)),
            ("package", "torch"), ("package", "vllm"), ("package", "transformers"), ("file", "/.dockerenv"),
            ("file", "/proc/self/mounts"), ("file", "/opt/rocm/.info/version")]  # fmt: skip
    texts = TEXTS | st.none() | st.just(Problem("permission denied"))
    changes = data.draw(st.dictionaries(st.sampled_from(keys), texts, max_size=12))
    look_all(changed(good, changes), target)


@pytest.mark.parametrize("target", HOSTS)
@settings(max_examples=40)
@given(data=st.data())
def test_no_missing_files_make_a_rule_raise(target: Target, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(HOSTS[target]))))
    look_all({key: text for key, text in HOSTS[target].items() if key in kept}, target)


def inputs(target: Target) -> list[tuple[str, tuple[str, str]]]:
    """(rule, reading) for every reading of the good host that a rule shows as evidence for a pass."""
    found = []
    for rule in RULES:
        if target not in rule.targets:
            continue
        host = Host(Sysroot(Memory(HOSTS[target])), target, Ask())
        if rule.look(host).status is Status.PASS:
            paths = {evidence.path for evidence in host.seen}
            found += [(rule.id, key) for key in HOSTS[target] if path_of(key) in paths]
    return found


def path_of(key: tuple[str, str]) -> str:
    return f"command {key[1]}" if key[0] == "command" else key[1]


@pytest.mark.parametrize("target", HOSTS)
@pytest.mark.parametrize("problem", ["permission denied", "operation not permitted", "i/o error", "device busy"])
def test_no_rule_passes_on_what_it_could_not_read(target: Target, problem: str) -> None:
    pairs = inputs(target)
    assert len(pairs) > 40
    for id, key in pairs:
        found = check(changed(HOSTS[target], {key: Problem(problem)}), id, target)
        assert found.status not in SOFT, (id, key, found.says)


# A text that is empty says nothing in these, and saying nothing is an answer: no option, no module's line, no file.
EMPTY_IS_AN_ANSWER = ("/proc/cmdline", "/etc/modprobe.d/", "/sys/module/amdgpu/version", "/etc/os-release")


@pytest.mark.parametrize("target", HOSTS)
@pytest.mark.parametrize("text", ["", "N/A", "\x00\ufffd\x7f"])
def test_no_rule_passes_on_what_makes_no_sense(target: Target, text: str) -> None:
    for id, key in inputs(target):
        if key[1].startswith(EMPTY_IS_AN_ANSWER):
            continue
        found = check(changed(HOSTS[target], {key: text}), id, target)
        assert found.status is not Status.PASS, (id, key, found.says)


def test_folders_that_may_not_be_listed_are_no_pass() -> None:
    for target, host in HOSTS.items():
        for folder in ("/sys/class/kfd/kfd/topology/nodes", "/sys/class/drm", "/lib/firmware/amdgpu"):
            bundle = changed(host, {("file", folder): Problem("permission denied")})
            for rule in RULES:
                if target in rule.targets:
                    host_view = Host(Sysroot(Memory(bundle)), target, Ask())
                    checked = examine(rule, host_view.root, target, Ask())
                    denied = any(evidence == Evidence(folder, "(permission denied)") for evidence in checked.evidence)
                    assert not (denied and checked.status is Status.PASS), rule.id


@settings(max_examples=12)
@given(data=st.data())
def test_a_tree_of_the_wrong_kinds_of_files_raises_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Real trees: folders for files, files for folders, links out and in circles, pipes, bytes that are no text."""
    tree = write_tree(HOSTS[Target.STRIX_HALO], tmp_path_factory.mktemp("host"))
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("1")
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), unique=True, max_size=15)):
        path.unlink()
        match data.draw(st.sampled_from(["folder", "out", "circle", "pipe", "bytes", "dangling"])):
            case "folder":
                path.mkdir()
            case "out":
                path.symlink_to(outside)
            case "circle":
                path.symlink_to(path)
            case "pipe":
                os.mkfifo(path)
            case "bytes":
                path.write_bytes(b"\xff\xfe\x00" * 50)
            case "dangling":
                path.symlink_to("nowhere")
    source = Recorded(tree)
    for target in Target:
        report = diagnose(Sysroot(source), target)
        render(report)
        for entry in to_json(report)["checks"]:
            assert "the rule itself failed" not in entry["says"], entry


def test_a_link_out_of_a_recorded_host_is_not_followed(tmp_path: Path) -> None:
    tree = write_tree(HOSTS[Target.STRIX_HALO], tmp_path / "host")
    (tmp_path / "limit").write_text("29360128")
    limit = tree / "sys/module/ttm/parameters/pages_limit"
    limit.unlink()
    limit.symlink_to(tmp_path / "limit")
    found = Recorded(tree).read("file", "/sys/module/ttm/parameters/pages_limit")
    assert (found.text, found.absent) == (None, False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable_and_not_absent(tmp_path: Path) -> None:
    tree = write_tree(HOSTS[Target.STRIX_HALO], tmp_path)
    file = tree / "proc/meminfo"
    file.chmod(0)
    assert Recorded(tree).read("file", "/proc/meminfo").problem == "permission denied"
    folder = tree / "proc"
    folder.chmod(0)
    assert Recorded(tree).read("file", "/proc/cmdline").problem == "permission denied"
    folder.chmod(stat.S_IRWXU)
