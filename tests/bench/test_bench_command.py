"""The command: what it prints for programs, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reports import entries
from test_expand import ENTRY
from test_store_and_compare import runs
from test_sweep_files import GOOD
from typer.testing import CliRunner, Result

from perilune.bench.store import Store
from perilune.cli.bench import bench
from perilune.errors import ConfigError


def call(*words: object) -> Result:
    return CliRunner().invoke(bench, [str(word) for word in words])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def test_plan_explain_and_schema_are_json_for_programs(file: Path) -> None:
    points = json.loads(call("plan", file, "--json").stdout)
    assert len(points) == 11
    assert points[0]["server"]["env"]["HSA_NO_SCRATCH_RECLAIM"] == "1"
    assert "11 points, 33 runs, 2 servers" in call("plan", file).stdout
    one = call("explain", file, points[0]["fingerprint"][:8]).stdout
    assert "accuracy below TP8" in one
    assert "HSA_NO" not in call("explain", file, "--fact", "mec_fw=180").stdout
    assert "SweepFile" in call("schema").stdout
    assert isinstance(call("explain", file, "zz").exception, ConfigError)


def test_a_plan_has_the_time_that_the_same_points_took_and_owns_up_to_what_is_unknown(
    file: Path, tmp_path: Path
) -> None:
    points = json.loads(call("plan", file, "--json").stdout)
    known = points[0]["fingerprint"]
    Store(tmp_path / "r").append({**runs(100.0)[0], "fingerprint": known, "seconds": 20.0}, [])
    like = ("--like", tmp_path / "r")
    again = json.loads(call("plan", file, "--json", *like).stdout)
    assert [each["run_seconds"] for each in again if each["fingerprint"] == known] == [20.0]
    assert "60.0 s and what the 10 points without a known time take" in call("plan", file, *like).stdout
    assert "as the servers' speed decides" in call("plan", file).stdout


def test_diff_says_what_changed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(GOOD.replace("block-size: 16", "block-size: 1").replace("[4, 8]", "[8]"))
    text = call("diff", file, other).stdout
    assert "0 kept, 6 changed, 0 added, 5 removed" in text
    assert len(json.loads(call("diff", file, other, "--json").stdout)["changed"]) == 6


def test_import_prints_a_file_that_plans(tmp_path: Path) -> None:
    master, made = tmp_path / "master.yaml", tmp_path / "made.yaml"
    master.write_text(ENTRY % "seq-len-configs:")
    made.write_text(call("import", master, "--keys", "kimi*").stdout)
    assert "13 points" in call("plan", made).stdout


@pytest.mark.parametrize(("speed", "code"), [(100.0, 0), (90.0, 1)])
def test_compare_report_and_export_read_what_run_wrote(speed: float, code: int, tmp_path: Path) -> None:
    for name, mean in (("old", 100.0), ("new", speed)):
        for entry in runs(mean, mean * 1.001, mean * 0.999):
            topology = dict.fromkeys(("tp", "pp", "ep"), 1)
            server = {"hardware": "cpu", "engine": "perilune", "image": None, "model": "m", "topology": topology}
            more = {"labels": {}, "server": server, "load": {"conc": 4}, "rules": [], "workload": {}, "slo": {}}
            Store(tmp_path / name).append({**entry, **more, "bench": {}, "seconds": 1.0}, [])
    compared = call("compare", tmp_path / "old", tmp_path / "new", "--metric", "output_per_s")
    assert compared.exit_code == code
    out = tmp_path / "report.html"
    assert call("report", tmp_path / "old", tmp_path / "new", "--out", out).exit_code == 0
    assert "no accuracy" in out.read_text()
    exported = json.loads(call("export", tmp_path / "new").stdout)
    assert exported[0]["output_tput_per_gpu"] == speed
    assert len(call("export", tmp_path / "new", "--format", "csv").stdout.splitlines()) == 4
    assert isinstance(call("export", tmp_path / "new", "--format", "xml").exception, ConfigError)


def test_a_sweep_against_nobody_ends_with_status_one_and_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        'sweeps: {s: {target: {url: "http://127.0.0.1:9"}, workload: {input: 4, output: 1},'
        " load: {kind: closed}, repeats: 1}}\n"
    )
    result = call("run", path, "--into", tmp_path / "r")
    assert result.exit_code == 1
    assert "1 failed" in result.stdout
    assert isinstance(call("resume", path, "--into", tmp_path / "none").exception, ConfigError)


def test_a_report_is_written_as_its_name_says(tmp_path: Path) -> None:
    for entry in entries():
        Store(tmp_path / "r").append(entry, [])
    for name, says in (
        ("r.md", "| load argv.no-prefix-cache=True conc=16 | degraded |"),
        ("r.csv", "fingerprint,sweep"),
    ):
        assert call("report", tmp_path / "r", "--out", tmp_path / name).exit_code == 0
        assert says in (tmp_path / name).read_text()
    text = (tmp_path / "r.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1, "every row has every column"
    assert "* Highest output: **" in text
    assert "run 0, degraded: no steady state" in text
    assert isinstance(call("report", tmp_path / "r", "--out", tmp_path / "r.pdf").exception, ConfigError)
