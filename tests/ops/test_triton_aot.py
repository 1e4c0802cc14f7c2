"""Every GPU kernel compiles for every target without spills, within its LDS, on matrix instructions; and the committed
report, docs/aot.json, says what comes out. Compiled in a child: here kernels are interpreted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from perilune.ops.gpu import aot, cases
from perilune.ops.gpu.arch import ARCHES, named
from perilune.ops.gpu.launch import Recorder
from perilune.ops.gpu.tiles import tile

REPORT = Path(__file__).parents[2] / "docs" / "aot.json"
NAMES = ("kernel", "form", "target", "warps", "stages")


def compiled(tmp_path: Path, target: str, *more: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "perilune", "ops", "--aot", target, "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode in (0, 1), done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["kernels"]
    return rows


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in NAMES), *sorted(row["tile"].items()))


def measured(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("registers", "spills", "scratch", "shared", "products", "unmatched", "matrix"))


def check(rows: list[dict[str, Any]]) -> None:
    assert [(identity(row), row["problems"]) for row in rows if row["problems"]] == []
    assert {row["kernel"].split(".")[0] for row in rows} == {"linear", "norm", "moe", "kda", "mla", "sample", "gpu"}
    report = json.loads(REPORT.read_text())
    if report["triton"] == triton.__version__:
        known = {(identity(row), measured(row)) for row in report["kernels"]}
        assert [row for row in rows if (identity(row), measured(row)) not in known] == []


@pytest.mark.parametrize("target", ARCHES)
def test_one_format_of_every_kernel_is_clean_and_as_reported(tmp_path: Path, target: str) -> None:
    check(compiled(tmp_path, target, "--quick"))
    waves = [re.search(r"\.wavefront_size:\s*(\d+)", file.read_text()) for file in tmp_path.rglob("*.amdgcn")]
    assert {int(found[1]) for found in waves if found} == ({ARCHES[target].warp} if "gfx" in target else set())


@pytest.mark.slow
@pytest.mark.parametrize("target", ARCHES)
def test_everything_is_clean_and_as_reported(tmp_path: Path, target: str) -> None:
    check(compiled(tmp_path, target))


def test_the_committed_report_is_clean_and_covers_all_targets_and_formats() -> None:
    rows = json.loads(REPORT.read_text())["kernels"]
    assert {row["target"] for row in rows} == set(ARCHES)
    assert not any(row["problems"] for row in rows)
    assert {"bf16", "fp32", "int4", "int4z", "int8", "mxfp4", "fp8"} <= {row["form"] for row in rows}
    assert all(row["matrix"] for row in rows if row["products"])


def test_a_spill_too_much_lds_and_a_product_without_matrix_instructions_are_problems() -> None:
    good = {**dict.fromkeys(aot.Build.__dataclass_fields__, 0), "tile": {}, "products": 1, "matrix": 4}
    arch = ARCHES["gfx1151"]
    assert aot.Build(**good).problems(arch) == []
    for bad in ({"spills": 1}, {"scratch": 4}, {"shared": arch.shared + 1}, {"unmatched": 1}, {"matrix": 0}):
        assert len(aot.Build(**{**good, **bad}).problems(arch)) == 1


def test_an_unknown_architecture_gets_default_tiles_and_a_wrong_name_a_hint() -> None:
    assert tile("gfx1100", "linear_few", "int4") == tile("", "linear_few")
    with pytest.raises(ValueError, match="gfx942"):
        named("gfx941")


def test_what_is_interpreted_cannot_be_compiled() -> None:
    gpu = Recorder(ARCHES["sm_90"])
    cases._norms(gpu)
    with pytest.raises(aot.CompileError, match="TRITON_INTERPRET"):
        aot.build(gpu.launches[0], gpu.arch)


def test_a_recorded_launch_holds_no_memory() -> None:
    for launch in cases.launches(ARCHES["gfx942"], quick=True):
        assert all(getattr(argument, "nbytes", 0) == 0 for argument in launch.args)
