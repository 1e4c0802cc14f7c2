"""`perilune doctor` as a program: what it prints, how it ends, what it never does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import load, write_tree

from perilune.host.live import COMMANDS, Live
from perilune.host.sysroot import Sysroot


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own that cannot import torch."""
    code = (
        "import sys; sys.modules['torch'] = None; from perilune.cli.app import main; sys.argv[0] = 'perilune'; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def good(tmp_path: Path) -> str:
    return str(write_tree(load("reconstructed/strix-good"), tmp_path / "good"))


@pytest.fixture
def cap31(tmp_path: Path) -> str:
    return str(write_tree(load("reconstructed/2.7-cap31"), tmp_path / "cap31"))


def test_exit_status_says_how_bad_it_is(good: str, cap31: str, tmp_path: Path) -> None:
    assert doctor("--sysroot", good).returncode == 0
    assert doctor("--sysroot", cap31).returncode == 2
    (Path(good) / "sys/kernel/mm/transparent_hugepage/enabled").write_text("always madvise [never]\n")
    assert doctor("--sysroot", good).returncode == 1
    unread = write_tree(load("reconstructed/strix-good"), tmp_path / "unread")
    (unread / "sys/class/dmi/id/bios_version").unlink()
    assert doctor("--sysroot", str(unread)).returncode == 1, "what could not be told is no pass"


def test_json_has_the_shape_programs_rely_on(cap31: str) -> None:
    found = json.loads(doctor("--sysroot", cap31, "--json").stdout)
    assert list(found) == ["target", "verdict", "checks"]
    assert (found["target"], found["verdict"]) == ("strix-halo", "fail")
    for check in found["checks"]:
        assert {"id", "status", "value", "evidence", "why", "fix", "reboot", "source"} <= set(check)
        assert check["status"] in ("pass", "warn", "fail", "skip", "unknown", "info")
        assert check["fix"] is None or set(check["fix"]) == {"debian", "fedora", "arch"}
        assert check["reboot"] in ("none", "reboot", "initramfs and reboot")
    (classed,) = [check for check in found["checks"] if check["id"] == "mem.class"]
    assert classed["value"] == "cap31"
    assert {"path": "/proc/meminfo", "text": "MemTotal:       65011712 kB"} in classed["evidence"]


def test_the_table_begins_with_the_worst_and_ends_with_what_to_do(cap31: str) -> None:
    lines = doctor("--sysroot", cap31).stdout.strip().splitlines()
    assert lines[0].startswith("✗ strix-halo")
    assert lines[3].startswith("✗ sys.kernel")
    assert any("Next: sys.kernel first." in line for line in lines)


def test_a_good_host_is_told_so(good: str) -> None:
    assert "Next: nothing to change." in doctor("--sysroot", good).stdout


def test_the_plans_need_counts(good: str) -> None:
    assert doctor("--sysroot", good, "--need", "112GiB").returncode == 0
    done = doctor("--sysroot", good, "--need", "113GiB", "--json")
    assert done.returncode == 2
    assert [check["id"] for check in json.loads(done.stdout)["checks"] if check["status"] == "fail"] == ["mem.gtt"]


def test_outputs_that_the_user_collected_are_used(good: str, tmp_path: Path) -> None:
    file = tmp_path / "hip.txt"
    file.write_text("(1000, 62890 MiB)")
    done = doctor("--sysroot", good, "--with", f"hip-total={file}")
    assert done.returncode == 2
    assert "mem.hip_total" in done.stdout
    wrong = doctor("--with", f"hip-totl={file}")
    assert wrong.returncode == 1
    assert "hip-total" in wrong.stderr
    assert "cannot be read" in doctor("--with", "dmesg=/nowhere").stderr


def test_the_fix_script_is_written_and_nothing_is_run(cap31: str, tmp_path: Path) -> None:
    before = {path: path.read_text() for path in Path(cap31).rglob("*") if path.is_file()}
    file = tmp_path / "fix.sh"
    done = doctor("--sysroot", cap31, "--fix-script", str(file))
    assert done.returncode == 2
    assert "read it" in done.stderr
    assert file.read_text().startswith("#!/bin/sh\n")
    assert {path: path.read_text() for path in Path(cap31).rglob("*") if path.is_file()} == before


def test_a_snapshot_of_a_recorded_host_is_examined_like_the_host(cap31: str, tmp_path: Path) -> None:
    file = tmp_path / "host.tar.gz"
    assert doctor("snapshot", str(file), "--sysroot", cap31).returncode == 0
    assert doctor("--sysroot", str(file), "--json").stdout == doctor("--sysroot", cap31, "--json").stdout


def test_wrong_words_are_answered_with_the_right_ones(tmp_path: Path) -> None:
    assert "host.tar.gz" in doctor("snapshot").stderr
    assert "no recorded host" in " ".join(doctor("--sysroot", str(tmp_path / "nothing")).stderr.split())
    assert doctor("--target", "mi400").returncode == 2


@pytest.mark.parametrize("target", ["auto", "strix-halo", "mi300x", "mi355x", "nvidia", "cpu"])
def test_this_machine_can_be_examined_for_anything(target: str) -> None:
    done = doctor("--target", target, "--json")
    assert done.returncode in (0, 1, 2), done.stderr
    assert "the rule itself failed" not in done.stdout
    assert json.loads(done.stdout)["target"] == target or target == "auto"


def test_commands_share_one_budget_of_time_and_none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, body in {"dmesg": "exec sleep 20", "rpm": "exit 1", "pacman": "printf 'x 20260309-1\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    live = Sysroot(Live(seconds=0.3))
    assert live.read("command", "rpm-firmware").problem == "ended with status 1"
    assert live.read("command", "pacman-firmware").text == "x 20260309-1\n"
    assert live.read("command", "dmesg").text is None
    assert live.read("command", "rocminfo").problem in ("absent", "the time for commands was spent")
    assert live.read("command", "hip-total").absent, "only a user can give it"
    assert all(argv[0] not in ("sh", "bash", "sudo") for argvs in COMMANDS.values() for argv in argvs)
