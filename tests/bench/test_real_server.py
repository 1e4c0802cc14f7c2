"""The whole way with a real `perilune serve` and the built-in model: launch, load, accuracy, store, report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import Quiet

from perilune.bench.export import inferencex, table
from perilune.bench.launch.child import started
from perilune.bench.plan.expand import expand
from perilune.bench.plan.point import Point
from perilune.bench.report.page import page
from perilune.bench.run import run
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.store import Entry, Store
from perilune.deploy.failures import EngineFailedError

SWEEP = """\
version: 1
recipes:
  tiny: {engine: perilune, model: builtin, argv: {max-running: 4, max-context: 1024, threads: 1}, ready_s: 100}
sweeps:
  random:
    recipe: tiny
    workload: {kind: random, input: 40, output: 6, vocabulary: [100, 800]}
    load: {kind: closed, requests: 6}
    axes: {conc: [1, 3]}
    repeats: 2
    warmup: 2
    evals: [{kind: arithmetic, questions: 6, max_tokens: 48, floor: 0.0}]
    labels: {isl: 40, osl: 6, precision: bf16}
  prefix:
    recipe: tiny
    workload: {kind: random, input: 300, output: 2, vocabulary: [100, 800], cache: warm, prefix: {length: 256}}
    load: {kind: closed, requests: 4}
    repeats: 1
    warmup: 1
  chat:
    recipe: tiny
    workload: {kind: sessions, endpoint: chat, turns: 2, system: 40, input: 10, output: 5, cache: any}
    load: {kind: poisson, rate: 20, requests: 3}
    repeats: 1
    warmup: 0
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[str]]:
    """Everything measured once, on one server."""
    meter = Quiet()
    store = Store(tmp_path_factory.mktemp("bench") / "results")
    run(expand(parse_sweeps(SWEEP)), store, meter)
    return store, meter.said


def of(store: Store, sweep: str) -> list[Entry]:
    return [entry for entry in store.entries() if entry["sweep"] == sweep]


def test_every_point_is_measured_on_one_server_with_repeats_interleaved(results: tuple[Store, list[str]]) -> None:
    store, said = results
    assert sum("runs, server " in line for line in said) == 1
    assert [(e["names"].get("conc"), e["repeat"]) for e in of(store, "random")] == [(1, 0), (3, 0), (1, 1), (3, 1)]
    assert all(entry["verdict"]["status"] != "failed" for entry in store.entries()), said


def test_counts_are_exact_and_the_defeated_cache_was(results: tuple[Store, list[str]]) -> None:
    store, _ = results
    for entry in of(store, "random"):
        records = store.records(entry)
        assert [record.input_tokens for record in records] == [40] * 6
        assert [record.output_tokens for record in records] == [6] * 6
        assert entry["metrics"]["hit_rate"] < 0.01
        assert entry["metrics"]["output_per_s"] > 0
    assert inferencex(entry)["output_tput_per_gpu"] == entry["metrics"]["output_per_s"]


def test_a_warm_cache_is_seen_in_the_server_s_counters(results: tuple[Store, list[str]]) -> None:
    (entry,) = of(results[0], "prefix")
    assert entry["ideal_hit_rate"] == pytest.approx(256 / 300)
    assert entry["metrics"]["hit_rate"] > 0.5 * entry["ideal_hit_rate"]


def test_sessions_send_what_was_said_before(results: tuple[Store, list[str]]) -> None:
    store, _ = results
    (entry,) = of(store, "chat")
    records = sorted(store.records(entry), key=lambda r: r.id)
    assert len(records) == 6
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert (second.input_tokens or 0) > (first.input_tokens or 0) + 10


def test_accuracy_is_asked_once_and_kept_by_question(results: tuple[Store, list[str]]) -> None:
    first, second = of(results[0], "random")[0], of(results[0], "random")[2]
    (score,) = first["evals"]
    assert (score["asked"], score["unanswered"], score["passed"], len(score["outcomes"])) == (6, 0, True, 6)
    assert second["evals"] == []


def test_the_report_is_one_file_that_loads_nothing(results: tuple[Store, list[str]]) -> None:
    text = page([("a", results[0].entries())])
    assert text.count("<svg") >= 4
    assert not any(word in text for word in ("http://", "https://", "<script", "@import", "url("))
    assert "prefers-color-scheme: dark" in text
    assert all(entry["fingerprint"] in text for entry in results[0].entries())
    assert table(results[0].entries()).startswith("fingerprint,sweep,repeat,verdict")


def points(text: str) -> tuple[Point, ...]:
    return expand(parse_sweeps(text), "prefix")


@pytest.mark.parametrize(
    ("change", "kind"),
    [(("model: builtin", "model: /nowhere/at/all"), "model"), (("max-running: 4", "no-such-flag: 4"), "flag"),
     (("max-context: 1024", "cache-bytes: 1KiB"), ""), (("ready_s: 100", "ready_s: 0.2"), "timeout")],
    ids=["model", "flags", "memory", "timeout"],
)  # fmt: skip
def test_a_server_that_does_not_start_says_why_and_leaves_nothing(
    change: tuple[str, str], kind: str, tmp_path: Path
) -> None:
    (point,) = points(SWEEP.replace(*change))
    with pytest.raises(EngineFailedError) as caught, started(point.server, tmp_path / "log"):
        raise AssertionError("it started")
    assert caught.value.kind == kind or not kind
    (entry,) = run([point], Store(tmp_path / "r"), Quiet())
    assert entry["verdict"]["status"] == "failed"
    assert "launch" in entry["verdict"]["reasons"][0]
    assert Store(tmp_path / "r").done() == set()


PAIR = """\
recipes:
  pair:
    model: builtin
    argv: {max-running: 4, max-context: 1024, threads: 1, pd-transports: "local,tcp"}
    ready_s: 100
    split: {router: {remote-from: 64, disturbance: 1000}}
sweeps:
  s:
    recipe: pair
    workload: {kind: random, input: 200, output: 4, vocabulary: [100, 800]}
    load: {kind: closed, conc: 2, requests: 6}
    repeats: 1
    warmup: 1
"""


def test_prefill_decode_and_router_are_started_measured_and_ended(tmp_path: Path) -> None:
    points = expand(parse_sweeps(PAIR))
    with started(points[0].server, tmp_path / "own.log") as running:
        groups = running.groups
        assert len(groups) == 3
        assert running.alive
        os.kill(groups[0], signal.SIGKILL)
        running.members[0].process.wait()
        assert not running.alive
        assert isinstance(running.failure(), EngineFailedError)
    assert not any(Path(f"/proc/{pid}").exists() for pid in groups)
    (entry,) = run(points, Store(tmp_path / "r"), Quiet())
    assert entry["verdict"]["status"] != "failed", entry["verdict"]
    assert entry["metrics"]["handed_over"] == 1.0
    assert [part["role"] for part in entry["server"]["parts"]] == ["prefill", "decode"]
    stored = (tmp_path / "r" / "runs.jsonl").read_text()
    assert "PERILUNE_PD_KEY" not in stored
    assert len(list((tmp_path / "r" / "logs").glob("*.log"))) == 3


def test_killed_in_the_middle_and_resumed_it_has_every_run_once_and_no_server_is_left(tmp_path: Path) -> None:
    file, into = tmp_path / "s.yaml", tmp_path / "results"
    file.write_text(SWEEP)
    command = [sys.executable, "-m", "perilune", "bench", "run", str(file), "--sweep", "random", "--into", str(into)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 150
    while not Store(into).entries():
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    servers = _children(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = len(Store(into).entries())
    with (into / "runs.jsonl").open("ab") as file_:
        file_.write(b'{"torn')
    again = subprocess.run([*command[:3], "bench", "resume", *command[5:]], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    entries = Store(into).entries()
    assert sorted((e["names"]["conc"], e["repeat"]) for e in entries) == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert len((into / "runs.jsonl").read_text().splitlines()) == 4
    assert f"{4 - before} runs added" in again.stdout
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in servers):
        assert time.monotonic() < end
        time.sleep(0.1)
    compared = subprocess.run(
        [*command[:3], "bench", "compare", str(into), str(into), "--json"], capture_output=True, text=True, check=False
    )
    assert json.loads(compared.stdout)["rows"]
    assert compared.returncode in (0, 3)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
