from __future__ import annotations

from pathlib import Path

import pytest

from perilune.host.memory import available_memory
from perilune.units import GIB

KIB_PER_GIB = 1024 * 1024


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 8 GiB available, in no control group."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: {16 * KIB_PER_GIB} kB\nMemAvailable:  {8 * KIB_PER_GIB} kB\n")
    return folder


def group(folder: Path, limit: str, used: int, cached: int = 0, *, v1: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{'total_inactive_file' if v1 else 'inactive_file'} {cached}\n")


def test_without_groups_the_machine_decides(proc: Path, tmp_path: Path) -> None:
    size, source = available_memory(proc, tmp_path / "none")
    assert size == 8 * GIB
    assert "MemAvailable" in source


def test_a_v2_group_below_the_machine_decides_and_its_page_cache_is_free(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/box\n")
    group(tmp_path / "cg" / "box", str(4 * GIB), 3 * GIB, cached=GIB)
    size, source = available_memory(proc, tmp_path / "cg")
    assert size == 2 * GIB
    assert "cgroup v2" in source


def test_a_parent_groups_limit_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    group(tmp_path / "cg" / "outer", str(5 * GIB), 2 * GIB)
    group(tmp_path / "cg" / "outer" / "inner", "max", GIB)
    assert available_memory(proc, tmp_path / "cg")[0] == 3 * GIB


def test_a_v1_group_is_found_by_its_controller(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/box\n0::/\n")
    group(tmp_path / "cg" / "memory" / "box", str(2 * GIB), GIB, v1=True)
    size, source = available_memory(proc, tmp_path / "cg")
    assert size == GIB
    assert "cgroup v1" in source


def test_the_v1_word_for_unlimited_is_no_limit(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("4:memory:/box\n")
    group(tmp_path / "cg" / "memory" / "box", "9223372036854771712", GIB, v1=True)
    assert available_memory(proc, tmp_path / "cg")[0] == 8 * GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/../../outside"])
def test_a_path_that_is_not_mounted_falls_back_to_the_mounted_root(proc: Path, tmp_path: Path, path: str) -> None:
    (proc / "self" / "cgroup").write_text(f"0::{path}\n")
    group(tmp_path / "cg", str(3 * GIB), GIB)
    assert available_memory(proc, tmp_path / "cg")[0] == 2 * GIB


def test_a_group_over_its_limit_has_nothing_left(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/box\n")
    group(tmp_path / "cg" / "box", str(GIB), 2 * GIB)
    assert available_memory(proc, tmp_path / "cg")[0] == 0


def test_a_system_without_proc_gives_its_physical_memory(tmp_path: Path) -> None:
    size, source = available_memory(tmp_path / "no", tmp_path / "none")
    assert size > 0
    assert "physical" in source


def test_this_machine_can_be_asked() -> None:
    size, source = available_memory()
    assert size > 0
    assert source
