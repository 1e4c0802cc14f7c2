"""How many threads compute, on systems laid out in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from perilune.host.cores import compute_threads


def system(folder: Path, cores: list[list[int]], files: dict[str, str] | None = None) -> tuple[Path, Path]:
    """/sys and /proc of a machine whose cores have these hardware threads."""
    for threads in cores:
        for cpu in threads:
            topology = folder / f"sys/devices/system/cpu/cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "core_cpus_list").write_text(",".join(map(str, threads)) + "\n")
    for name, text in (files or {}).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "sys", folder / "proc"


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    where = system(tmp_path, [[0, 4], [1, 5], [2, 6], [3, 7]])
    assert compute_threads(frozenset(range(8)), *where)[0] == 4


def test_only_processors_this_process_may_use_count(tmp_path: Path) -> None:
    where = system(tmp_path, [[0, 4], [1, 5], [2, 6], [3, 7]])
    assert compute_threads(frozenset({0, 4, 5}), *where)[0] == 2


def test_without_a_topology_every_processor_is_a_core(tmp_path: Path) -> None:
    assert compute_threads(frozenset({0, 1, 2}), *system(tmp_path, []))[0] == 3
    assert compute_threads(frozenset(), *system(tmp_path, []))[0] == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "broken\n"}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n3:memory:/x\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "4:cpu:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n"}, 4),
        ({"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
    ],
)
def test_a_control_group_lowers_the_number(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    where = system(tmp_path, [[0], [1], [2], [3]], files)
    count, why = compute_threads(frozenset(range(4)), *where)
    assert count == expected
    assert ("limit" in why) == (expected < 4)


def test_this_machine_has_at_least_one() -> None:
    assert compute_threads()[0] >= 1
